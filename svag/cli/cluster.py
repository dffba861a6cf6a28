"""Where runs are carried out: the options ``--workers``, ``--cluster`` and ``--detach``."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svag.errors import InvalidOption, RecordError

if TYPE_CHECKING:
    from svag.lab.executors.cluster import Cluster
    from svag.lab.executors.contract import Executor, WorkPlace
    from svag.lab.executors.thread_count import Division
    from svag.lab.studies import Study
    from svag.problems import Data, Problem

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="FILE.yml|ADDRESS",
        help="Carry runs out on Ray or Slurm: a cluster file, or host:port of a Ray cluster.",
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="Submit and exit; the same command attaches, `svag status DIR` shows the progress.",
    ),
]


def cluster_of(given: str | None, workers: int | None) -> "Cluster":
    """Return the cluster on which runs are carried out; by default this machine.

    Args:
        given: ``--cluster``: path of a cluster file, or ``host:port`` of a Ray cluster.
        workers: ``--workers``: processes on this machine; None for the default.

    Raises:
        ClusterError: the cluster file cannot be used, or the cluster is not there.
        InvalidOption: ``--workers`` is given for a cluster of another kind.
    """
    from svag.lab.executors import submission
    from svag.lab.executors.cluster import LocalCluster, RayCluster, SlurmCluster, reach, read

    cluster = LocalCluster(workers=workers) if given is None else read(given)
    if given is not None and workers is not None:
        raise InvalidOption(
            f"--workers {workers} with --cluster {given}: write workers into the cluster file"
        )
    if isinstance(cluster, RayCluster):
        reach(cluster)
    elif isinstance(cluster, SlurmCluster):
        submission.reach(cluster)
    return cluster


def device_on(cluster: "Cluster", wanted: str) -> str:
    """Return the device of the runs, ``cpu`` or ``cuda``.

    Raises:
        InvalidOption: this machine has no such device, or the cluster file requests no GPU.
    """
    from svag.lab.devices import device_named
    from svag.lab.executors.cluster import LocalCluster, RayCluster

    if isinstance(cluster, LocalCluster):
        return device_named(wanted)
    if isinstance(cluster, RayCluster):
        gpus, key = cluster.num_gpus > 0, "num_gpus"
    else:
        gpus, key = cluster.gpus, "slurm_gpus_per_node"
    device = wanted if wanted != "auto" else "cuda" if gpus else "cpu"
    if device not in ("cpu", "cuda"):
        raise InvalidOption(f"device {wanted!r} on a cluster: choose cpu, cuda or auto")
    if device == "cuda" and not gpus:
        raise InvalidOption(f"device 'cuda': write {key} into the cluster file, or choose cpu")
    return device


@contextmanager
def executor_on(
    cluster: "Cluster",
    task: "Problem",
    data: "Data",
    study: "Study",
    place: "WorkPlace",
    layout: "Division",
) -> Iterator["Executor"]:
    """Yield the executor of a study's runs, and close it at the end.

    Args:
        cluster: where runs are carried out.
        task: the problem.
        data: its data, for runs in this process.
        study: its methods say which files of the user a cluster needs.
        place: the folder and the settings that runs are carried out with.
        layout: processes, and threads of each, for runs on this machine.

    Raises:
        ClusterError: the cluster cannot be reached, or cannot take a run.
    """
    with tempfile.TemporaryDirectory(prefix="svag-") as scratch:
        executor = _executor(cluster, task, data, study, place, layout, Path(scratch))
        try:
            yield executor
        finally:
            executor.close()


def _executor(
    cluster: "Cluster",
    task: "Problem",
    data: "Data",
    study: "Study",
    place: "WorkPlace",
    layout: "Division",
    scratch: Path,
) -> "Executor":
    from svag.lab.executors.cluster import RayCluster, SlurmCluster

    if isinstance(cluster, RayCluster):
        from svag.lab.executors.code_to_copy import pack
        from svag.lab.executors.ray_cluster import Ray

        copy = pack(task, study.methods, place.spec, scratch)
        return Ray(cluster, place, copy.folder, copy.spec)
    if isinstance(cluster, SlurmCluster):
        from svag.lab.executors.slurm_cluster import Slurm

        return Slurm(cluster, place)
    from svag.lab.executors.local import InProcess, Pool

    if layout.workers == 1:
        import torch

        torch.set_num_threads(layout.threads)
        return InProcess(task, data, place)
    return Pool(place, layout.workers, layout.threads)


def where(cluster: "Cluster", layout: "Division") -> str:
    """Describe in a few words where runs are carried out."""
    if cluster.kind == "local":
        return f"{layout.workers} worker{'s' * (layout.workers != 1)}"
    return f"on {'Ray' if cluster.kind == 'ray' else 'Slurm'}"


def detach(cluster: "Cluster", task: "Problem", study: "Study", place: "WorkPlace") -> str:
    """Start a detached driver, a process that carries out the study; return a message about it.

    Args:
        cluster: where runs are carried out.
        task: the problem.
        study: what to carry out.
        place: the folder and the settings that runs are carried out with.

    Raises:
        ClusterError: the cluster cannot be reached or does not accept the driver.
        RecordError: a driver already works in the folder, or the folder cannot be written.
    """
    from svag.lab import folder_lock, studies
    from svag.lab.executors import detached
    from svag.lab.executors.cluster import RayCluster
    from svag.lab.executors.code_to_copy import CodeCopy, pack

    with folder_lock.claim(place.directory):
        studies.keep(place.directory, study)
    command = [word for word in sys.argv[1:] if word != "--detach"]
    with tempfile.TemporaryDirectory(prefix="svag-") as scratch:
        copy = CodeCopy(None, place.spec)
        if isinstance(cluster, RayCluster):
            copy = pack(task, study.methods, place.spec, Path(scratch))
            command = [copy.spec if word == place.spec else word for word in command]
        driver = detached.launch(place.directory, cluster, command, study.id, copy.folder)
    return (
        f"detached: {driver.kind} {driver.id} carries out the study; `svag status "
        f"{place.directory}` shows its progress, the same command attaches"
    )


def attach(directory: Path, study: "Study", say: Callable[[str], None], *, detach: bool) -> None:
    """Follow a detached driver of the same study until it ends; do nothing if there is none.

    Args:
        directory: the study's folder.
        study: the study that the driver should carry out.
        say: prints a line.
        detach: whether ``--detach`` was given; it is refused while a driver is running.

    Raises:
        RecordError: a detached driver carries out another study in the folder, or ``detach`` is
            True and one carries out this study.
        ClusterError: the driver's cluster cannot be reached.
    """
    from svag.lab.executors import detached

    driver = None if detached.here() else detached.found(directory)
    if driver is None:
        return
    now = detached.state(directory, driver)
    if not now.alive:
        return
    if driver.study != study.id or detach:
        what = "this study" if driver.study == study.id else f"study {driver.study}"
        raise RecordError(
            f"a detached driver carries out {what} in {directory} ({now.said}); wait for it, or "
            "choose another folder with --out"
        )
    say(f"attached: {now.said}; Ctrl-C detaches and leaves it running")
    try:
        now = detached.follow(directory, driver, lambda line: say(f"  {line}"))
    except KeyboardInterrupt:
        say("detached; the driver is still running")
        raise typer.Exit(130) from None
    say(now.said)
