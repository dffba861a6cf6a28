"""``svag bench``: measures what svag costs and how often its verdicts are wrong."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from svag.cli.options import DataDir, Problem, Steps
from svag.entrants import entrant
from svag.errors import InvalidOption

if TYPE_CHECKING:
    from svag.bench.step import Timing

bench = typer.Typer(
    help="Measure what svag costs, against peers in the same process, and how often its verdicts "
    "are wrong."
)


@bench.command("runner")
def bench_runner(
    problem: Problem = "fmnist-2c2d",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each timing.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved pairs of timings.")] = 15,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Time the training loop, without evaluations, against a hand-written one."""
    from svag import problems
    from svag.bench import runner
    from svag.lab.devices import device_named

    task, chosen = problems.get(problem), device_named(device)
    data = problems.load(task, data_dir)
    print(runner.measure(task, data, steps=steps, rounds=rounds, device=chosen))


@bench.command("rounding")
def bench_rounding(
    problem: Problem = "digits",
    key: Annotated[str, typer.Option("--method", help="Key (see `svag methods`).")] = "m-svag",
    lr: Annotated[float | None, typer.Option(help="Step size; the method's default.")] = None,
    steps: Steps = None,
    data_dir: DataDir = None,
) -> None:
    """Compare the loss curves with moving averages in bfloat16 and in float32."""
    from svag import problems
    from svag.bench import rounding

    task = problems.get(problem)
    data = problems.load(task, data_dir)
    step_size = entrant(key).lr if lr is None else lr
    length = task.quick_steps if steps is None else steps
    print(rounding.measure(task, data, key=key, lr=step_size, steps=length))


@bench.command("variance")
def bench_variance(
    workload: Annotated[
        list[str] | None, typer.Option(help="One of the workloads; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved timings.")] = 7,
) -> None:
    """Time the within-batch variance as a multiple of a plain forward and backward pass."""
    from svag.bench import variance

    known = variance.workloads()
    for name in workload or known:
        if name not in known:
            raise InvalidOption(f"--workload {name!r}; known: {', '.join(known)}")
        print(variance.measure(known[name](), rounds=rounds))


@bench.command("monitor")
def bench_monitor(
    steps: Annotated[int, typer.Option(min=1, help="Steps of each timing.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved pairs of timings.")] = 15,
    every: Annotated[int, typer.Option(min=1, help="Least steps between two readings.")] = 1,
    budget: Annotated[float, typer.Option(help="Share of the wall time it may take.")] = 0.02,
) -> None:
    """Time training steps with `svag.Monitor` against steps without it, on P1's network."""
    from svag.bench import monitor

    print(monitor.measure(steps=steps, rounds=rounds, every=every, budget=budget))


@bench.command("step")
def bench_step(
    rounds: Annotated[int, typer.Option(min=2, help="Steps of every optimizer.")] = 30,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the parameters are.")
    ] = "cpu",
    layout: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Parameter shapes to time, such as 2c2d, or all."),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Optimizer to time with its peers, or all."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; by default as many as it chooses.")
    ] = None,
    first_step: Annotated[
        bool,
        typer.Option("--first-step", help="Time the first step of a new process instead."),
    ] = False,
) -> None:
    """Time an optimizer's step against torch's, interleaved, and against copying as many bytes.

    Ratios are of times in the same round. Measure on an idle machine: on a busy one the ratios
    favour svag, whose threads take chunks of work as they become free, while torch's wait for the
    slowest. Timing all optimizers in turn empties the processor's caches between two steps, as
    the backward pass of a large model does; with --optimizer the caches stay warm, as for a small
    model.
    """
    import torch

    from svag.bench import step

    if threads is not None:
        torch.set_num_threads(threads)
    if first_step:
        columns = ("optimizer", "first step on a machine\ns", "in a later process\ns")
        table = Table(*columns, box=None, pad_edge=False)
        for one in step.first_steps():
            table.add_row(one.name, f"{one.empty_cache:.2f}", f"{one.filled_cache:.2f}")
        Console().print(table, highlight=False)
        return
    names, optimizers = step.choose(layout or [], device), list(step.entrants(optimizer or []))
    print("; ".join(step.remarks(device)))
    shown = step.has_targets(device)
    missed = []
    for name in names:
        rows = step.measure(name, rounds=rounds, device=device, optimizers=optimizers)
        Console(width=max(200, Console().width)).print(_step_table(rows, shown), highlight=False)
        goals = [(row, *goal) for row in rows for goal in row.goals.items()]
        missed += [f"{row.name} on {name}, {what}" for row, what, (_, met) in goals if not met]
    if shown:
        print(f"targets missed: {'; '.join(missed) or 'none'}")


@bench.command("jax")
def bench_jax(
    rounds: Annotated[int, typer.Option(min=2, help="Steps of every optimizer.")] = 30,
    layout: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Parameter shapes to time, such as 2c2d; four of them."),
    ] = None,
) -> None:
    """Time steps of `svag.jax` under jit as multiples of optax.adam's, interleaved.

    On JAX's default device, with parameters and state donated and not.
    """
    from svag.bench import jax_step

    columns = ("parameters", "donated", "optimizer", "ms", "ratio (quartiles)")
    for name in jax_step.choose(layout or []):
        table = Table(*columns, "state bytes/\nelement", box=None, pad_edge=False)
        for donated in (False, True):
            for row in jax_step.measure(name, rounds=rounds, donated=donated):
                ratio = "{1:.3f} ({0:.3f}-{2:.3f})".format(*row.ratio)
                cells = (row.layout, "yes" if donated else "no", row.name)
                table.add_row(*cells, f"{row.milliseconds:.3f}", ratio, f"{row.state:.2f}")
        Console(width=max(120, Console().width)).print(table, highlight=False)


def _step_table(rows: "Iterable[Timing]", shown: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in (
        *("parameters", "optimizer", "ms", "peer", "ratio (quartiles)", "target"),
        *("bytes/\nelement", "GB/s", "share\nof copy", "target", "state bytes/\nelement"),
        "allocated",
    ):
        table.add_column(column, no_wrap=True)
    for row in rows:
        goals = row.goals if shown else {}
        table.add_row(
            row.layout,
            row.name,
            f"{row.milliseconds:.3f}",
            row.peer,
            row.ratio and "{1:.3f} ({0:.3f}-{2:.3f})".format(*row.ratio),
            _goal("<=", goals.get("ratio")),
            f"{row.moved:.4g}",
            f"{row.bandwidth:.1f}",
            row.share and f"{row.share.median:.2f}",
            _goal(">=", goals.get("share")),
            None if row.state is None else f"{row.state:.2f}",
            None if row.allocated is None else f"{row.allocated / 1e3:.0f} kB",
        )
    return table


def _goal(relation: str, goal: tuple[float, bool] | None) -> str:
    return "" if goal is None else f"{relation} {goal[0]:.2f} {'met' if goal[1] else 'missed'}"


@bench.command("verdict")
def bench_verdict(
    studies: Annotated[int, typer.Option(min=1, help="Studies of every scenario.")] = 200,
    seeds: Annotated[
        list[int] | None, typer.Option(min=2, help="Final runs of a method, n; repeatable.")
    ] = None,
    cost: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Percentage points lost at a step size half a decade off the best; repeatable.",
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="One of the scenarios; repeatable.")
    ] = None,
    protocol: Annotated[
        Literal["tuned", "paper"], typer.Option(help="As in `svag compare`.")
    ] = "tuned",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Simulate whole studies of made-up methods and count how often a verdict is wrong.

    The columns are percentages of studies: with any claim of an effect; with "the sign counts";
    with "the sign decides"; with "adaptation decides"; with the sign "equal within" the default
    margin; in which all simultaneous intervals contain the effects of tuned methods; of single
    intervals that contain them; with a final run that diverged. The last column is the number of
    runs of a method.
    """
    from svag.bench import verdict

    for name in scenario or ():
        if name not in verdict.SCENARIOS:
            raise InvalidOption(f"--scenario {name!r}; known: {'; '.join(verdict.SCENARIOS)}")
    print("| " + " | ".join(verdict.COLUMNS) + " |")
    print("|" + " --- |" * len(verdict.COLUMNS))
    verdict.measure(
        studies=studies,
        seeds=seeds or verdict.SEEDS,
        costs=cost or verdict.COSTS,
        scenarios=scenario or verdict.SCENARIOS,
        protocol=protocol,
        workers=workers,
        observe=lambda row: print(row, flush=True),
    )
