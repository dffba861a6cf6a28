"""``svag compare``: tune methods on a problem, train them, and report."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from svag.anatomy import PAPER_METHODS
from svag.cli import cluster as clusters
from svag.cli import option_values
from svag.cli.options import DataDir, Json, Problem, Steps
from svag.cli.reporting import present, say
from svag.errors import ProblemError, RecordError, in_one_line

if TYPE_CHECKING:
    from svag.lab.executors.cluster import Cluster
    from svag.lab.executors.contract import WorkPlace
    from svag.lab.executors.thread_count import Division
    from svag.lab.records import Record
    from svag.lab.studies import Study
    from svag.problems import Data
    from svag.problems import Problem as Task

_START_SECONDS = 60.0
_SEEDS = {"quick": 5, "full": 10}


def compare(
    problem: Problem,
    methods: Annotated[
        str,
        typer.Option(help="What to compare, separated by commas (see `svag methods`)."),
    ] = ",".join(PAPER_METHODS),
    lr: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=VALUE", help="A fixed step size, instead of a search."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=A,B,C", help="Step sizes to search among."),
    ] = None,
    budget: Annotated[
        Literal["quick", "full"],
        typer.Option(help="quick: shorter runs, 5 seeds; full: full length, 10 seeds."),
    ] = "quick",
    protocol: Annotated[
        Literal["tuned", "paper"],
        typer.Option(
            help="tuned: several seeds choose the step size, and intervals include the choice; "
            "paper: one seed chooses (§6.1 of the paper)."
        ),
    ] = "tuned",
    steps: Steps = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of every method, n.")] = None,
    start: Annotated[
        Literal["norms", "suggested"],
        typer.Option(
            help="Where searches begin: by the norms of parameters and gradient, or where a "
            "dissection of a minute suggests."
        ),
    ] = "norms",
    selection_seeds: Annotated[
        int, typer.Option(min=1, help="Seeds that choose among neighbouring step sizes.")
    ] = 3,
    select: Annotated[
        Literal["test", "validation"] | None,
        typer.Option(
            help="Choose step sizes on test data, as the paper does, or on held-out data."
        ),
    ] = None,
    smallest_effect: Annotated[
        float | None,
        typer.Option(
            min=0, help="Smallest difference of the metric that matters; 0.01 is one point."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples a step.")] = None,
    beta: Annotated[
        float | None, typer.Option(min=0, max=1, help="beta of all methods that have one.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="L2 weight decay; by default the problem's own.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: cuda if this machine has it, else cpu.")
    ] = "auto",
    autocast: Annotated[
        Literal["bfloat16", "float16", "off"] | None,
        typer.Option(help="Precision of the forward pass; the problem's own by default."),
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(help="Use the channels-last memory format; by default the problem's own."),
    ] = None,
    eval_examples: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            help="Examples of each split to evaluate during a run; at its end all are evaluated.",
        ),
    ] = "1000",
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two checkpoints of a run.")
    ] = 60.0,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which a run ends in error.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes to run side by side; one a core by default."),
    ] = None,
    cluster: clusters.ClusterOption = None,
    detach: clusters.Detach = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of records and report; runs/PROBLEM by default.")
    ] = None,
    data_dir: DataDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many runs it takes and how long; stop.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Tune and train the methods on a problem, and report which half of Adam did the work.

    For each method a step size is searched for on the grid 1, 3 x 10^k with one seed; several seeds
    choose among the best neighbours, and fresh seeds give the figures. Runs are recorded as they
    go: a second call, or one after Ctrl-C, goes on from what is there.

    Exit codes: 0 done (a run that diverged is a result), 1 a run ended in error, 2 unusable
    input, 130 Ctrl-C.
    """
    from svag import problems
    from svag.entrants import entrant, split, with_options
    from svag.lab.executors.contract import WorkPlace

    carried_out_on = clusters.cluster_of(cluster, workers)
    task = problems.get(problem)
    keys = [entrant(text).key for text in split(methods)]
    if beta is not None:
        keys = [with_options(key, beta=beta).key for key in keys]
    data = problems.load(task, data_dir)
    settings = _Settings(
        methods=tuple(dict.fromkeys(keys)),
        lrs=lr or [],
        grids=grid or [],
        steps=steps or (task.steps if budget == "full" else task.quick_steps),
        seeds=seeds or _SEEDS[budget],
        selection_seeds=selection_seeds,
        protocol=protocol,
        select=select or task.select,
        smallest_effect=smallest_effect,
        batch_size=batch_size or task.batch_size,
        weight_decay=task.weight_decay if weight_decay is None else weight_decay,
        eval_examples=option_values.eval_examples(eval_examples),
        device=clusters.device_on(carried_out_on, device),
        channels_last=task.channels_last if channels_last is None else channels_last,
        autocast=task.autocast if autocast is None else None if autocast == "off" else autocast,
    )
    study = _study(task, data, settings)
    directory = out or Path("runs") / task.name
    console = Console(stderr=True, quiet=quiet)
    place = WorkPlace(problem, data_dir, directory, timeout, checkpoint_every)
    job = _Job(task, data, study, place, carried_out_on)
    if dry_run:
        job.announce(Console(stderr=True), job.layout(trial=True))
        return
    if start == "suggested":
        job.study = _from_suggested(job, console)
    clusters.attach(directory, job.study, lambda line: say(console, line), detach=detach)
    if detach:
        say(console, clusters.detach(carried_out_on, task, job.study, place))
        return
    carried_out = job.carry_out(console)
    failed = [record for record in carried_out if record.status == "error"]
    _present(job.study, directory, failed, as_json=as_json)
    _explain(failed, len(carried_out))
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Settings:
    """The settings of the command line that a study is made from."""

    methods: tuple[str, ...]
    lrs: list[str]
    grids: list[str]
    steps: int
    seeds: int
    selection_seeds: int
    protocol: Literal["tuned", "paper"]
    select: Literal["test", "validation"]
    smallest_effect: float | None
    batch_size: int
    weight_decay: float
    eval_examples: int | None
    device: str
    channels_last: bool
    autocast: str | None


def _study(task: "Task", data: "Data", wanted: _Settings) -> "Study":
    from svag.entrants import entrant
    from svag.lab import search_starts
    from svag.lab.base_run import base_run
    from svag.lab.optimizers import check, code_version
    from svag.lab.studies import Study

    for one in (entrant(key) for key in wanted.methods):
        if one.outside:
            check(one, task.model().parameters())
    base = base_run(
        task,
        data,
        steps=wanted.steps,
        select=wanted.select,
        batch_size=wanted.batch_size,
        weight_decay=wanted.weight_decay,
        eval_examples=wanted.eval_examples,
        device=wanted.device,
        channels_last=wanted.channels_last,
        autocast=wanted.autocast,
    )
    lrs = {key: numbers[0] for key, numbers in option_values.by_method(wanted.lrs, "--lr").items()}
    grids = option_values.by_method(wanted.grids, "--grid")
    searched = [key for key in wanted.methods if key not in lrs and key not in grids]
    code = {key: code_version(entrant(key)) for key in wanted.methods}
    return Study(
        base=base,
        methods=wanted.methods,
        seeds=wanted.seeds,
        protocol=wanted.protocol,
        selection_seeds=wanted.selection_seeds,
        lrs=lrs,
        grids={key: tuple(sorted(points)) for key, points in grids.items()},
        starts=search_starts.starts(task, data, base, searched),
        code={key: version for key, version in code.items() if version},
        smallest_effect=wanted.smallest_effect,
        source=task.source,
    )


def _from_suggested(job: "_Job", console: Console) -> "Study":
    """Return a study whose searches begin where a dissection suggests, unless it has begun."""
    from svag.diagnosis.problem_dissection import suggested_starts
    from svag.lab import studies

    study = job.study
    searched = [key for key in study.methods if key not in study.lrs and key not in study.grids]
    if not searched or any(one.study.id == study.id for one in studies.filed(job.directory)):
        return study
    say(console, f"dissecting {job.task.name} for step sizes to begin at ({_START_SECONDS:g} s)")
    found = suggested_starts(job.task, job.data, study.base, searched, _START_SECONDS)
    return replace(study, starts={**study.starts, **found})


class _Job:
    """A study to be carried out, and its messages to the user."""

    def __init__(
        self,
        task: "Task",
        data: "Data",
        study: "Study",
        place: "WorkPlace",
        cluster: "Cluster",
    ) -> None:
        self.task, self.data, self.study = task, data, study
        self.directory, self._place = place.directory, place
        self._cluster = cluster

    def layout(self, *, trial: bool = False) -> "Division":
        """Measure how runs share the cores best, and how long one run takes.

        Args:
            trial: whether nothing is trained afterwards, so that errors have to be raised here.

        Raises:
            ProblemError: in a trial, a step of the problem raises. Otherwise the runs will record
                the error.
        """
        from svag.lab.executors import thread_count
        from svag.lab.timing import seconds_a_run

        def seconds(count: int) -> float:
            return seconds_a_run(self.task, self.data, self.study, count)

        cluster = self._cluster
        workers = cluster.workers if cluster.kind == "local" else None
        try:
            if cluster.threads is not None:
                count = workers or max(1, thread_count.cores() // cluster.threads)
                return thread_count.Division(count, cluster.threads, seconds(cluster.threads))
            return thread_count.chosen(seconds, workers)
        except (Exception, SystemExit) as error:
            if trial:
                what = f"the first steps of {self.task.name!r} failed"
                raise ProblemError(f"{what}: {in_one_line(error)}") from error
            return thread_count.plain(workers)

    def announce(self, console: Console, layout: "Division") -> None:
        """Print what will be run, and about how long it takes."""
        from svag.entrants import entrant
        from svag.lab import protocol

        study = self.study
        names = ", ".join(entrant(key).name for key in study.methods)
        runs = protocol.expected_runs(study)
        seconds = layout.seconds * runs / layout.workers
        text = (
            f"about {seconds / 3600:.1f} h" if seconds > 5400 else f"about {seconds / 60:.0f} min"
        )
        say(
            console,
            f"{self.task.name}: {names}; {study.base.steps} steps a run, {study.seeds} seed"
            f"{'s' * (study.seeds != 1)}, {clusters.where(self._cluster, layout)}; about "
            f"{runs} runs, {text if seconds > 60 else 'a minute or less'}; records in "
            f"{self.directory}",
        )

    def carry_out(self, console: Console) -> "list[Record]":
        """Carry the study out and return the records of its runs."""
        from svag.lab import folder_lock, protocol, studies
        from svag.lab.execution import carry_out
        from svag.lab.executors import thread_count
        from svag.progress import RunProgress

        with folder_lock.claim(self.directory):
            self.study = study = studies.keep(self.directory, self.study)
            layout = thread_count.kept(
                self.directory / "layout.json", self.layout, getattr(self._cluster, "workers", None)
            )
            self.announce(console, layout)
            try:
                with (
                    clusters.executor_on(
                        self._cluster, self.task, self.data, study, self._place, layout
                    ) as executor,
                    RunProgress(console, protocol.expected_runs(study)) as progress,
                ):
                    plans = {
                        key: protocol.plan(study, key, protocol.Outcome(key))
                        for key in study.methods
                    }
                    return carry_out(plans, executor, self.directory, progress.observe)
            except KeyboardInterrupt:
                say(console, "interrupted; the same command goes on from here")
                raise typer.Exit(130) from None


def _present(study: "Study", directory: Path, failed: "Sequence[Record]", *, as_json: bool) -> None:
    from svag.analysis.study import analyse

    try:
        present(analyse(directory, study.id), directory, directory, as_json=as_json)
    except RecordError:  # no run finished; _explain prints the errors
        if not failed:
            raise
        if as_json:
            messages = {str((record.end or {}).get("message")) for record in failed}
            print(json.dumps({"errors": sorted(messages)}, indent=1))


def _explain(failed: "Sequence[Record]", total: int) -> None:
    """Print each error message of failed runs once; with ``--debug`` the tracebacks, too."""
    console = Console(stderr=True)
    messages = Counter(str((record.end or {}).get("message")) for record in failed)
    for message, count in messages.items():
        say(console, f"error in {count} of {total} runs: {message}")
    if "--debug" in sys.argv:
        for trace in {(record.end or {}).get("traceback") for record in failed} - {None}:
            say(console, str(trace))
