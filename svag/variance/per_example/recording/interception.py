"""Intercepts every operation of a forward pass, and puts a tap behind those that use parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from svag.errors import PerExampleError
from svag.variance.per_example.owners.following import follow, is_transformed, state_of, take_mark
from svag.variance.per_example.owners.marks import (
    mark,
    mark_learned,
    mark_of,
    note_alias,
    noted_rows,
    recall,
)
from svag.variance.per_example.owners.operation_names import LIKE_FIRST, only_like, plain_name
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Lost,
    Packed,
    Placed,
    Single,
    Summed,
    Where,
)
from svag.variance.per_example.recording.checkpoints import refuse_selective
from svag.variance.per_example.recording.derived import derive, derive_in_place, fill_in_place
from svag.variance.per_example.recording.functions import (
    ALIASES,
    Call,
    asked_in_place,
    handles,
    is_composite,
    is_in_place,
    name_of,
    replaces_data,
    reshapes_in_place,
    unguarded,
)
from svag.variance.per_example.recording.hooked import NOTED, Retained, note_hook, refuse_change
from svag.variance.per_example.recording.recorder import Recorder
from svag.variance.per_example.recording.taps import Factory, Site, Tap, Use
from svag.variance.per_example.structures import replaced, tensors_in

Rule: TypeAlias = Callable[["Interception", Call, Sequence[Any], dict[str, Any]], Any]


class Listener(Protocol):
    """Is told of operations and backward passes."""

    def record(self, func: Call, args: Any, kwargs: Any, out: Any) -> None:
        """Called after each intercepted operation.

        Args:
            func: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: its result.
        """

    def before_backward(
        self,
        roots: Sequence[Tensor],
        gradients: "Sequence[Tensor | None] | None",
        mode: "Interception",
    ) -> None:
        """Called before a backward pass.

        Args:
            roots: the tensors that it starts from.
            gradients: their gradients, as given to ``backward``; None for ones.
            mode: the interception, which can run autograd.
        """


class Interception(TorchFunctionMode):
    """Intercepts every torch operation while the context is open.

    Args:
        recorder: collects the contributions.
        rules: rules for operations that take a parameter, by function.
        otherwise: the rule for other operations that take a parameter.
        always: checks to run before some operations, with or without a parameter, by function.
        listener: is told of operations and backward passes.
    """

    def __init__(
        self,
        recorder: Recorder,
        rules: Mapping[Call, Rule],
        otherwise: Rule,
        always: Mapping[Call, Rule],
        listener: Listener,
    ) -> None:
        super().__init__()
        self.recorder, self.rules = recorder, rules
        self.otherwise, self.always, self.listener = otherwise, always, listener
        self._hooked = False  # whether a tensor has a hook that a change in place may drop
        self.retained = Retained()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if func in (Tensor.backward, torch.autograd.backward):
            return self._backward(*args, **kwargs)
        if func is torch.autograd.grad:
            return self._gradients(args, kwargs)
        if func in NOTED:
            self.retained.note(func, args)
            self._hooked |= note_hook(func, args)
        if self._hooked and is_in_place(func):
            refuse_change(name_of(func), args[0])
        if func in self.always:
            self.always[func](self, func, args, kwargs)
        out = self._run(func, args, kwargs)
        self.listener.record(func, args, kwargs, out)
        return out

    def _backward(
        self,
        tensors: "Tensor | Sequence[Tensor]",
        grad_tensors: "Tensor | Sequence[Tensor] | None" = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
        **renamed: Any,
    ) -> None:
        """Run a backward pass with the mode on, to intercept what checkpointing recomputes."""
        gradient = renamed.get("gradient", grad_tensors)
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        given = [gradient] if gradient is None or isinstance(gradient, Tensor) else list(gradient)
        self.listener.before_backward(roots, given if gradient is not None else None, self)
        try:
            with self:
                unguarded(torch.autograd.backward)(
                    roots, gradient, retain_graph, create_graph, inputs=inputs
                )
        finally:
            self.recorder.fixed = False

    def _gradients(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the user's ``torch.autograd.grad``, whose gradients are not added to ``p.grad``."""
        before, self.recorder.silent = self.recorder.silent, True
        try:
            found = self.grad(*args, **kwargs)
        finally:
            self.recorder.silent = before
        roots = list(tensors_in((args[0] if args else kwargs["outputs"],)))
        inputs = tensors_in((args[1] if len(args) > 1 else kwargs["inputs"],))
        for gradient, tensor in zip(found, inputs, strict=False):
            if gradient is not None and any(state_of(t) is not CONSTANT for t in roots):
                mark(gradient, self._of_gradient(tensor, map(state_of, roots)))
                mark_learned(gradient)
        return found

    def _of_gradient(self, tensor: Tensor, roots: Iterable[Where]) -> Where:
        """Return the mark of a gradient: that of the tensor, or a sum over the examples."""
        lost = next((where for where in roots if isinstance(where, Lost)), None)
        where = state_of(tensor) if lost is None else lost
        if where is not CONSTANT:
            return where
        if self.recorder.source_of(tensor) is not None:
            return Summed("a gradient of a sum over the examples")
        return noted_rows(tensor) or CONSTANT

    def grad(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Run ``torch.autograd.grad`` with the mode on."""
        with self:
            return cast(tuple[Tensor | None, ...], unguarded(torch.autograd.grad)(*args, **kwargs))

    def _run(self, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in((*args, *kwargs.values())))
        if not torch.is_grad_enabled() or handles(func):
            return self._plain(func, args, kwargs, tensors)
        if torch._C._current_graph_task_id() != -1:
            for tensor in tensors:
                recall(tensor)
        followed = self.recorder.followed(tensors)
        if not followed:
            return self._plain(func, args, kwargs, tensors)
        refuse_selective(func)
        if only_like(plain_name(func), args, followed):
            return self._plain(func, args, kwargs, tensors)
        constant = all(state_of(t) is CONSTANT or _only_chooses(func, args, t) for t in tensors)
        if plain_name(func) in LIKE_FIRST:
            return derive(self.recorder, func, args, kwargs, followed[:1])
        if constant and is_composite(func) and asked_in_place(func, args, kwargs):
            return self.inside(func, args, kwargs)
        if is_in_place(func) and constant:
            return derive_in_place(self.recorder, func, args, kwargs, followed)
        if is_in_place(func) and any(t is args[0] for t in followed):
            return fill_in_place(self.recorder, func, args, kwargs, followed)
        if constant:
            return derive(self.recorder, func, args, kwargs, followed)
        if func in self.rules:
            return self.rules[func](self, func, args, kwargs)
        if is_composite(func):
            return self.inside(func, args, kwargs)
        return self.otherwise(self, func, args, kwargs)

    def _plain(
        self, func: Call, args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        """Run an operation that takes no parameter, and mark its outputs."""
        placed = [t for t in tensors if state_of(t) is not CONSTANT]
        if placed and is_composite(func):
            return self.inside(func, args, kwargs)
        verified = self.recorder.verification is not None and torch.is_grad_enabled()
        if verified and _may_sum(plain_name(func), placed):
            return self._cut(func, args, kwargs)
        given = args
        if placed and reshapes_in_place(func):  # rules compare with the old shape
            given = args[0].detach(), *args[1:]
            mark(given[0], state_of(args[0]))
            tensors = [given[0], *tensors[1:]]
        out = func(*args, **kwargs)
        outputs = list(tensors_in((out,)))
        if self.recorder.verification is not None:
            self.recorder.verification.note_precision(outputs)
        if placed and replaces_data(func):
            take_mark(*tensors)
        elif outputs:
            follow(func, given, kwargs, tensors, outputs)
            if func in ALIASES:
                note_alias(outputs[0], tensors[0])
        elif placed and is_in_place(func):
            follow(func, args, kwargs, tensors, tensors[:1])  # x[i] = y
        return out

    def _cut(self, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation that may sum over examples on aliases, to verify from there."""
        aliases: dict[int, Tensor] = {}
        cuts: list[tuple[Tensor | GradientEdge, Placed]] = []
        for tensor in tensors_in((*args, *kwargs.values())):
            where = mark_of(tensor)
            if not isinstance(where, (*IS_PLACED, Packed)) or not tensor.requires_grad:
                continue
            rows = where.steps() if isinstance(where, Packed) else where
            if is_in_place(func) and tensor is args[0]:
                cuts.append((get_gradient_edge(tensor), rows))  # its value before the operation
                continue
            aliases[id(tensor)] = tensor.view_as(tensor)
            mark(aliases[id(tensor)], where)
            cuts.append((aliases[id(tensor)], rows))
        args, kwargs = replaced(args, aliases), replaced(kwargs, aliases)
        out = func(*args, **kwargs)
        outputs = list(tensors_in((out,)))
        follow(func, args, kwargs, list(tensors_in((*args, *kwargs.values()))), outputs)
        assert self.recorder.verification is not None
        if any(not isinstance(mark_of(t), IS_PLACED) for t in outputs):
            for cut, rows in cuts:
                self.recorder.verification.cut_at(cut, rows)
        return out

    def inside(self, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a Python function of torch.nn.functional so that its operations are intercepted.

        Args:
            func: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        with self:
            return unguarded(func)(*args, **kwargs)

    def where_of(self, tensor: Tensor, func: Call) -> Placed:
        """Return the mark of a tensor; raise if its rows are not assigned to examples."""
        where = state_of(tensor)
        if isinstance(where, IS_PLACED):
            return where
        if isinstance(where, Packed):
            return where.steps()
        shape = tuple(tensor.shape)
        if isinstance(where, Summed) or (isinstance(where, Lost) and where.mixed):
            raise PerExampleError(
                f"{name_of(func)} was given a tensor of shape {shape} in which the examples of the "
                f"mini-batch are mixed ({where}), so no example has a gradient of its own. If they "
                "lie along another dimension, pass batch_dim; else use svag.micro_batch_variance"
            )
        raise PerExampleError(
            f"{name_of(func)} was given a tensor of shape {shape}, and which of its rows belong to "
            f"which example is not clear ({where}). Write it with operations that svag follows, "
            "or use svag.micro_batch_variance"
        )

    def given(self, tensor: Any, where: "Placed | Packed") -> Any:
        """Return the parameter for an operation: detached if a tap computes its gradient."""
        return tensor.detach() if self.replaces(tensor, where) else tensor

    def replaces(self, tensor: Any, where: "Placed | Packed") -> bool:
        """Whether the sum of a closed form may replace autograd's gradient of a parameter."""
        regular = isinstance(where, Layout | Packed)
        return regular and self.recorder.replaces(self.recorder.source_of(tensor))

    def tap(
        self,
        output: Tensor,
        data: Sequence[Tensor],
        uses: Sequence[tuple[Tensor | None, Factory]],
        where: "Placed | Packed",
        *,
        observe: bool = False,
        copy: bool = False,
    ) -> Tensor:
        """Put a tap behind ``output``.

        Args:
            output: output of the operation, which took the parameters from :meth:`given`.
            data: tensors that the factories need besides the gradient of the output.
            uses: pairs of a parameter and its factory, the function that makes contributions;
                parameters that are not followed are dropped.
            where: mark of the output.
            observe: whether the operation took the parameters themselves, not :meth:`given`'s.
            copy: whether to put the tap behind a copy, because the operation may have saved its
                output.

        Returns:
            The output.
        """
        kept = []
        for tensor, make in uses:
            source = self.recorder.source_of(tensor)
            if source is not None:
                kept.append(Use(source, make, not observe and self.replaces(tensor, where)))
        if kept:
            if is_transformed(output):
                names = " and ".join(self.recorder.label(t) for t, _ in uses if t is not None)
                raise PerExampleError(
                    f"{names} is used inside torch.vmap, or another transformation of torch.func; "
                    "call the model on the mini-batch itself, or use svag.micro_batch_variance"
                )
            site = Site(self.recorder, kept, where)
            view = output._is_view()
            if copy or view:
                output = output.clone()
            saved = [t.detach() for t in data]
            output = Tap.apply(  # type: ignore[no-untyped-call]
                site, len(saved), output, *saved, *site.replaced
            )
            if view:  # autograd drops the hooks of a view that is changed in place later
                output = output.view_as(output)
        mark(output, where)
        return output


def _only_chooses(func: Call, args: Sequence[Any], tensor: Tensor) -> bool:
    """Whether a tensor is an integer index, determined by all examples, into the first argument."""
    chooses = plain_name(func) in ("getitem", "index_select") and tensor is not args[0]
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    return chooses and whole and isinstance(state_of(tensor), Summed)


def _may_sum(name: str, placed: Sequence[Tensor]) -> bool:
    """Whether an operation may sum over examples."""
    if name in ("add", "sub"):
        return any(isinstance(state_of(t), Single) for t in placed)
    if name == "matmul":
        return bool(placed) and all(t.dim() == 1 for t in placed)
    return bool(placed) and name in MAY_SUM


MAY_SUM = frozenset(
    {"sum", "mean", "nansum", "nanmean", "prod", "amax", "amin", "max", "min", "median", "norm"}
    | {"logsumexp", "std", "var", "linalg_vector_norm", "cross_entropy_loss", "nll_loss"}
    | {"nll_loss_nd", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "ctc_loss"}
    | {"binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss"}
    | {"hinge_embedding_loss", "margin_ranking_loss", "cosine_embedding_loss", "dot", "vdot"}
    | {"triplet_margin_loss", "poisson_nll_loss", "multi_margin_loss", "multilabel_margin_loss"}
)
