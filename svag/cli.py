"""The ``svag`` command: parse, call, print."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from svag.anatomy import METHODS, PAPER_METHODS, method
from svag.errors import InvalidOption, RecordError, SvagError

if TYPE_CHECKING:
    from svag.bench.step import Row as StepRow

app = typer.Typer(
    help="Adam taken apart: does its sign or its variance adaptation help, on your own problem?",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure what svag costs, against peers in the same process.")
app.add_typer(bench, name="bench", no_args_is_help=True)

Problem = Annotated[
    str,
    typer.Argument(
        help="A name (see `svag problems`), path/to/file.py:function or module:function."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of original data files; else $SVAG_DATA, else a download."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of every run.")]


@app.command()
def compare(
    problem: Problem,
    methods: Annotated[
        str, typer.Option(help="Comma-separated keys (see `svag methods`).")
    ] = ",".join(PAPER_METHODS),
    lr: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=VALUE", help="A settled step size, not searched for."),
    ] = None,
    budget: Annotated[
        Literal["quick", "paper"],
        typer.Option(help="quick: shorter runs, 5 seeds; paper: full length, 10 seeds."),
    ] = "quick",
    steps: Steps = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Replications of every method.")] = None,
    select: Annotated[
        Literal["test", "validation"],
        typer.Option(
            help="Choose step sizes by test accuracy, as the paper does, or by validation."
        ),
    ] = "test",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes to run side by side; one a core by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of records and report; runs/PROBLEM by default.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Tune and train the methods on a problem, and report which half of Adam did the work.

    For each method a step size is searched for on the grid 1, 3 x 10^k, upwards until a run
    diverges or two in a row are worse than the best, then downwards likewise; the best is
    replicated with other seeds. Runs are recorded as they go: a second call, or one after
    Ctrl-C, goes on from what is there.

    Exit codes: 0 done (a run that diverged is a result), 1 a run ended in error, 2 unusable
    input, 130 Ctrl-C.
    """
    from svag import problems
    from svag.lab import pool, protocol, records
    from svag.progress import RunProgress

    task = problems.get(problem)
    study = protocol.Study(
        methods=tuple(dict.fromkeys(method(key.strip()).key for key in methods.split(","))),
        steps=steps or (task.steps if budget == "paper" else task.quick_steps),
        seeds=seeds or protocol.SEEDS[budget],
        lrs=_step_sizes(lr or []),
        select=select,
    )
    directory = out or Path("runs") / task.name
    console = Console(stderr=True)
    with records.claim(directory):
        data = problems.load(task, data_dir)
        base = protocol.template(task, data, study)
        workers = workers or pool.cores()
        executor: pool.Executor = pool.Here(task, data, directory)
        if workers > 1:
            executor = pool.Pool(pool.Place(problem, data_dir, directory), workers)
        console.print(
            f"{task.name}: {', '.join(method(key).name for key in study.methods)}; "
            f"{study.steps} steps a run, {study.seeds} seeds, "
            f"{workers} worker{'s' * (workers > 1)}; records in {directory}",
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        try:
            with RunProgress(console, protocol.expected_runs(study)) as progress:
                plans = {key: protocol.plan(base, key, study) for key in study.methods}
                carried_out = protocol.carry_out(plans, executor, directory, progress.observe)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
        finally:
            executor.close()
    failed = [record for record in carried_out if record.status == "error"]
    try:
        _report(directory, console, study.lrs, **protocol.shared_settings(base))
    except RecordError:  # nothing to report: what failed is said below
        if not failed:
            raise
    messages = Counter(str((record.end or {}).get("message")) for record in failed)
    for message, count in messages.items():
        text = f"error in {count} of {len(carried_out)} runs: {message}"
        console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A folder that `svag compare` filled.")],
    problem: Annotated[
        str | None, typer.Option(help="Of several studies, that of a problem.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of several studies, that of a length.")] = None,
) -> None:
    """Make the report again from the records of a folder; nothing is trained."""
    wanted = {"problem": problem, "steps": steps}
    named = {key: value for key, value in wanted.items() if value is not None}
    _report(directory, Console(stderr=True), {}, **named)


@app.command("problems")
def list_problems() -> None:
    """List the problems that have names."""
    from svag import problems

    table = Table("problem", "what it is", "batch", "steps (quick)", box=None, pad_edge=False)
    for name in problems.PROBLEMS:
        task = problems.get(name)
        lengths = f"{task.steps} ({task.quick_steps})"
        table.add_row(name, task.description, str(task.batch_size), lengths)
    Console().print(table)


@app.command("methods")
def list_methods() -> None:
    """Show the table of methods: theta <- theta - lr * (direction * factor)."""
    columns = ("key", "method", "sign", "adapted", "update", "state", "lr", "class")
    table = Table(*columns, box=None, pad_edge=False)
    for row in METHODS.values():
        anatomy = row.anatomy
        table.add_row(
            row.key,
            row.name,
            "yes" if anatomy.sign else "-",
            "yes" if anatomy.adapted else "-",
            str(anatomy),
            ", ".join(anatomy.buffers) or "-",
            f"{row.lr:g}",
            f"svag.{row.optimizer}",
        )
    Console(width=max(120, Console().width)).print(table, highlight=False)


@app.command()
def figure(
    name: Annotated[
        str, typer.Argument(help="2, 3, 4, theorem1, wilson or p-diag.", metavar="NAME")
    ],
    out: Annotated[Path, typer.Option(help="Folder of pictures and tables.")] = Path("figures"),
) -> None:
    """Reproduce a figure of the paper's theory, with its numbers; seconds to a minute."""
    from svag.theory.figures import draw

    try:
        files = draw(name, out)
    except OSError as error:
        raise RecordError(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    for path in files:
        print(path)


@bench.command("runner")
def bench_runner(
    problem: Problem = "fmnist-2c2d",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each timing.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved pairs of timings.")] = 15,
    data_dir: DataDir = None,
) -> None:
    """Time the training loop against a hand-written one, evaluations aside."""
    from svag import problems
    from svag.bench import runner

    task = problems.get(problem)
    print(runner.measure(task, problems.load(task, data_dir), steps=steps, rounds=rounds))


@bench.command("rounding")
def bench_rounding(
    problem: Problem = "digits",
    key: Annotated[str, typer.Option("--method", help="Key (see `svag methods`).")] = "m-svag",
    lr: Annotated[float | None, typer.Option(help="Step size; the method's default.")] = None,
    steps: Steps = None,
    data_dir: DataDir = None,
) -> None:
    """Compare the loss curve with averages in bfloat16 to the one in float32."""
    from svag import problems
    from svag.bench import rounding

    task = problems.get(problem)
    data = problems.load(task, data_dir)
    step_size = method(key).lr if lr is None else lr
    length = task.quick_steps if steps is None else steps
    print(rounding.measure(task, data, key=key, lr=step_size, steps=length))


@bench.command("variance")
def bench_variance(
    workload: Annotated[
        list[str] | None, typer.Option(help="One of the workloads; may be given again.")
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


@bench.command("step")
def bench_step(
    rounds: Annotated[int, typer.Option(min=2, help="Steps of every optimizer.")] = 30,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the parameters are.")
    ] = "cpu",
    layout: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of parameters, such as 2c2d; or all.")
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="To time, with its peers, such as svag.MSVAG; or all."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's; as many as it chooses by default.")
    ] = None,
    first_step: Annotated[
        bool,
        typer.Option("--first-step", help="Time what a process's first step costs, instead."),
    ] = False,
) -> None:
    """Time an optimizer's step against torch's, interleaved, and against copying as many bytes.

    Ratios are of times in the same round. On a busy machine they flatter svag, whose threads share
    out the work as they go while torch's wait for the slowest: measure on an idle one. All
    optimizers in turn leave nothing in the caches for a step to find, as a large model's backward
    pass does; one with its peers alone leaves what a small model's does.
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


def _step_table(rows: "Iterable[StepRow]", shown: bool) -> Table:
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


def _report(directory: Path, console: Console, lrs: Mapping[str, float], **wanted: object) -> None:
    from svag import report as reports
    from svag.lab import records
    from svag.lab.analysis import analyse
    from svag.lab.published import beside
    from svag.lab.verdict import verdict
    from svag.report import tables

    analysis = analyse(records.load(directory), lrs, **wanted)
    page = reports.write(analysis, directory)
    print(verdict(analysis))
    known = beside(analysis)
    columns = ("method", "step size", "n", "test accuracy", "training loss")
    table = Table(*columns, *("published",) * (known is not None), box=None, pad_edge=False)
    for key, row in tables.rows(analysis).items():
        cells = [row.name, row.lr, str(row.n), row.final["test_accuracy"], row.final["train_loss"]]
        if known is not None:
            published = known.test_accuracy.get(key)
            cells.append("" if published is None else f"{100 * published:.1f} %")
        table.add_row(*cells)
    Console(width=max(100, Console().width)).print(table, highlight=False)
    console.print(f"report: {page}", highlight=False, markup=False, emoji=False, soft_wrap=True)


def _step_sizes(options: list[str]) -> dict[str, float]:
    lrs = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            lrs[method(key.strip()).key] = float(value)
        except ValueError as error:
            if isinstance(error, SvagError):
                raise
            raise InvalidOption(
                f"--lr {option}: give METHOD=VALUE with a number, e.g. --lr adam=1e-3"
            ) from None
    return lrs
