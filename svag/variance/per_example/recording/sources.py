"""Where a tensor that an operation uses comes from: a parameter, or computed from parameters."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svag.variance.per_example.contributions.base import Contributions
from svag.variance.per_example.contributions.pulled_back import PulledBack
from svag.variance.per_example.contributions.weight_norm import WeightNorm, WeightNormed


@dataclass(frozen=True)
class Source:
    """How a tensor was computed from parameters alone.

    Attributes:
        params: the parameters.
        leaves: copies of them, at which the graph of ``computed`` starts.
        compute: returns the tensor in that graph.
        weight_norm: ``dim``, if it is the weight norm of v and g, the ``params``.
        is_parameter: whether the tensor is a parameter itself.
    """

    params: tuple[nn.Parameter, ...]
    leaves: tuple[Tensor, ...]
    compute: Callable[[], Tensor]
    weight_norm: int | None = None
    is_parameter: bool = False

    @functools.cached_property
    def computed(self) -> Tensor:
        """The tensor in the graph that starts at the leaves."""
        return self.compute()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computed tensor."""
        return self.params[0].dtype if self.weight_norm is not None else self.computed.dtype

    def pulled_back(self, contributions: Contributions) -> Sequence[Contributions]:
        """Return the contributions to each parameter from those to the computed tensor."""
        if self.is_parameter:
            return [contributions]
        if self.weight_norm is not None:
            v, g = self.leaves
            both = WeightNorm(contributions, v, g, self.weight_norm)
            return [WeightNormed(both, of_length=length) for length in (False, True)]
        return [PulledBack(contributions, self.computed, leaf) for leaf in self.leaves]


def source_of(param: nn.Parameter) -> Source:
    """Return the source that a parameter is of itself."""
    leaf = param.detach().requires_grad_()
    return Source((param,), (leaf,), lambda: leaf, is_parameter=True)
