"""``svag dissect``: what the sign and the variance do on a problem, and which step sizes to use."""

import json
import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from svag.anatomy import PAPER_METHODS
from svag.cli.options import DataDir, Json, Problem
from svag.cli.reporting import say

if TYPE_CHECKING:
    from svag.diagnosis.findings import Dissection

_PARTS = {
    "directions": "one step along each direction",
    "race": "a short race",
    "curvature": "curvature",
    "variants": "rotated axes and larger batches",
}
_WITHOUT = ("data_dir", "as_json", "quiet")


def dissect(
    context: typer.Context,
    problem: Problem,
    methods: Annotated[
        str, typer.Option(help="What to dissect, separated by commas (see `svag methods`).")
    ] = ",".join(PAPER_METHODS),
    after: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="Train for so many steps first.")
    ] = 0,
    at: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Saved parameters (a state_dict) to dissect at."),
    ] = None,
    trained_by: Annotated[
        str, typer.Option("--with", metavar="METHOD", help="What trains, with --after.")
    ] = "adam",
    lr: Annotated[
        float | None, typer.Option(help="Its step size; by default the method's own.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for everything: 90s, 5m, 1h; 5m by default, 50s for a small model.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=3, help="Draws of each direction; the budget decides by default."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the training that is planned; the problem's own."),
    ] = None,
    race_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most steps of a training in the race; a fifth of --steps by default."
        ),
    ] = None,
    variants: Annotated[
        bool,
        typer.Option(
            "--variants/--no-variants", help="Also rotated axes and larger batches, as time allows."
        ),
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the model and of all draws.")
    ] = 0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: cuda if this machine has it, else cpu.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of records and page; runs/PROBLEM-dissected by default."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Say whether Adam's sign or its variance adaptation helps on a problem, within minutes.

    One step along each method's direction is measured first, by line search on held batches; a
    short race from the same point follows, then the curvature, and the same directions with rotated
    axes and larger batches. The findings are DIR/dissect.jsonl, and as a page DIR/dissect.html.

    Exit codes: 0 done, 2 unusable input, 130 Ctrl-C.
    """
    started = time.perf_counter()
    from svag import problems
    from svag.diagnosis.budget import seconds_of
    from svag.diagnosis.findings import refuse_folder
    from svag.diagnosis.plan import DissectionPlan
    from svag.diagnosis.problem_dissection import Point, dissect_problem
    from svag.entrants import entrant, split
    from svag.errors import InvalidOption, ProblemError, SvagError, in_one_line
    from svag.lab.base_run import base_run
    from svag.lab.devices import device_named
    from svag.report import dissection

    if not after and (lr is not None or _given(context, "trained_by")):
        raise InvalidOption("--with and --lr say what trains before; give --after STEPS, too")
    task = problems.get(problem)
    directory = out or Path("runs") / f"{task.name}-dissected"
    refuse_folder(directory)
    planned = steps or task.steps
    plan = DissectionPlan(
        methods=tuple(entrant(text) for text in dict.fromkeys(split(methods))),
        budget=None if budget is None else seconds_of(budget),
        draws=draws,
        variants=variants,
        steps=planned,
        longest=race_steps,
        problem=task.name,
        seed=seed,
    )
    data = problems.load(task, data_dir)
    base = base_run(
        task, data, steps=task.steps, device=device_named(device), autocast=task.autocast
    )
    console = Console(stderr=True, quiet=quiet)
    point = Point(after=after, method=trained_by, lr=lr, at=at, seed=seed)
    try:
        plan = replace(plan, spent=time.perf_counter() - started)
        with _Bar(console) as bar:
            found = dissect_problem(task, data, base, plan, point, bar.show)
    except SvagError:
        raise
    except (Exception, SystemExit) as error:  # a user's model and loss may raise anything
        what = f"{task.name!r} could not be dissected"
        raise ProblemError(f"{what}: {in_one_line(error)}") from error
    except KeyboardInterrupt:
        say(console, "interrupted; nothing was written")
        raise typer.Exit(130) from None
    found.setting = replace(found.setting, command=_command(context))
    path = found.write(directory)
    page = dissection.write(directory)
    if as_json:
        from svag.diagnosis.findings import plain

        print(json.dumps(plain(found.rows()), indent=1))
        return
    present(found)
    print(f"\nrecords: {path}\npage: {page}")


def _given(context: typer.Context, name: str) -> bool:
    """Return whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _command(context: typer.Context) -> str:
    """Return the command line that was given, without what does not change the findings."""
    words = ["svag", "dissect"]
    for param in context.command.params:
        name = param.name or ""
        if not _given(context, name) or name in _WITHOUT:
            continue
        option = [param.opts[0]] if param.param_type_name == "option" else []
        words += [*option, str(context.params[name])]
    return shlex.join(words)


def present(found: "Dissection") -> None:
    """Print the answer, the table of the methods, and the line to paste."""
    from svag.entrants import entrant

    console = Console()
    ended = found.conclusion
    assert ended is not None
    answer, _, line = str(found).partition("\n\n")
    headline, _, rest = answer.partition("\n")
    console.print(headline, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(rest, highlight=False, markup=False, soft_wrap=True)
    table = Table(
        *("method", "one step is worth", "its step size", "after the race", "suggested"), box=None
    )
    suggested = {one.method: f"{one.lr:g}" for one in ended.suggestions}
    plain = {one.method: one for one in found.improvements if one.track == "plain"}
    for key in found.setting.methods:
        step, worth = plain.get(key), "-"
        if step is not None:
            worth = f"{step.value:.3g} ({step.interval[0]:.3g} to {step.interval[1]:.3g})"
        raced = "-"
        if found.race is not None and key in found.race.lrs:
            sign = -1 if found.setting.larger_is_better else 1
            value = f"{found.setting.metric} {sign * found.race.losses[key]:.4g}"
            lr = found.race.lrs[key]
            lost = "no best step size" if key in found.race.unbounded else "diverged"
            raced = f"{value} at lr {lr:g}" if math.isfinite(lr) else lost
        greedy = "-" if step is None else f"{step.lr:.2g}"
        table.add_row(entrant(key).name, worth, greedy, raced, suggested.get(key, "-"))
    console.print(table, highlight=False)
    if line:
        console.print(f"\n{line}", highlight=False, markup=False, soft_wrap=True)


class _Bar:
    """A bar for each part of the dissection."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), console=console, transient=True
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._bar.stop()

    def show(self, part: str, share: float) -> None:
        if part not in self._tasks:
            self._tasks[part] = self._bar.add_task(_PARTS[part], total=1.0)
        self._bar.update(self._tasks[part], completed=share)  # type: ignore[arg-type]
