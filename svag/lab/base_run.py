"""The run that all runs of a study are variations of."""

from svag.errors import InvalidOption
from svag.lab.evaluation import held_out
from svag.lab.record_format import Select
from svag.lab.run import Run
from svag.problems import Data, Problem

_EVALUATIONS = 20
EVAL_EXAMPLES = 1000
"""Default number of examples of each split to evaluate during a run."""


def base_run(
    problem: Problem,
    data: Data,
    *,
    steps: int,
    select: Select | None = None,
    batch_size: int | None = None,
    weight_decay: float | None = None,
    eval_examples: int | None = EVAL_EXAMPLES,
    device: str = "cpu",
    autocast: str | None = None,
    channels_last: bool | None = None,
) -> Run:
    """Return the run that all runs of a study are variations of; its method and seed are open.

    Args:
        problem: the problem.
        data: its data.
        steps: steps of a run.
        select: ``"test"`` or ``"validation"``; None for the problem's own.
        batch_size: examples in a batch; None for the problem's own.
        weight_decay: lambda of the L2 term; None for the problem's own.
        eval_examples: examples of each split to evaluate during a run; None for all.
        device: ``"cpu"`` or ``"cuda"``.
        autocast: dtype of the forward pass, such as ``"bfloat16"``; None for no autocast.
        channels_last: whether to use that memory format; None for the problem's own.

    Raises:
        InvalidOption: there are fewer training examples than a batch needs, or the problem carries
            state and its rows are laid out for another batch size.
    """
    size = problem.batch_size if batch_size is None else batch_size
    if problem.carry_state and size != problem.batch_size:
        raise InvalidOption(
            f"a batch of {size}: the rows of {problem.name!r}, which carries state from batch to "
            f"batch, are laid out for batches of {problem.batch_size}; leave --batch-size away"
        )
    select = select or problem.select
    left = len(data.train) - (held_out(len(data.train)) if select == "validation" else 0)
    if size > left:
        raise InvalidOption(
            f"a batch of {size} is more than the {left} examples of {problem.name!r} to train on"
            + (", a tenth being held out" if select == "validation" else "")
            + "; choose a smaller --batch-size"
        )
    metric = problem.judged_by(data).quantity
    return Run(
        problem=problem.name,
        version=problem.version,
        data=data.fingerprint,
        method="",
        anatomy="",
        beta=None,
        beta2=None,
        lr=0.0,
        seed=0,
        steps=steps,
        batch_size=size,
        weight_decay=float(problem.weight_decay if weight_decay is None else weight_decay),
        eval_every=max(1, steps // _EVALUATIONS),
        eval_examples=eval_examples,
        select=select,
        device=device,
        autocast=autocast,
        channels_last=problem.channels_last if channels_last is None else channels_last,
        metric=metric.name,
        metric_better="larger" if metric.larger_is_better else "smaller",
        metric_unit=metric.unit,
        metric_low=None if metric.low is None else float(metric.low),
        metric_high=None if metric.high is None else float(metric.high),
    )
