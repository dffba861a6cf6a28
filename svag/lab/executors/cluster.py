"""Cluster files: which cluster, and what a run gets of it.

A file has lines such as ``kind: ray``, ``address: 10.0.0.1:6379``, ``num_gpus: 0.5``, or
``kind: slurm``, ``slurm_partition: short``, ``runs_per_job: 40``.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from svag.errors import SvagError, nearest


class ClusterError(SvagError, OSError):
    """A cluster file cannot be used, or the cluster is not there or does not do its part."""


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """Processes of this machine.

    Attributes:
        workers: runs side by side; one a core by default.
        threads: of each.
    """

    kind: ClassVar[str] = "local"
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A Ray cluster that is already there.

    Attributes:
        address: ``host:port`` of its head, or ``auto`` for the one that this machine is a node of.
        num_cpus: cores of a run.
        num_gpus: GPUs of a run; several runs may share one.
        memory: bytes of memory that a run is promised.
        resources: custom resources of a run, by name.
        threads: threads of a run; as many as cores by default.
        workers: most runs at once; None for as many as there is room for.
        working_dir: folder of the user's code, which travels to the nodes whole; by default
            the Python files beside the problem's travel.
    """

    kind: ClassVar[str] = "ray"
    address: str = "auto"
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    workers: int | None = None
    working_dir: str | None = None

    @property
    def needs(self) -> dict[str, float]:
        """What a node has to have for a run, by Ray's names."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A Slurm cluster, through submitit; the nodes share the folder of the records.

    Attributes:
        executor: ``slurm``, or ``local`` for jobs that are processes of this machine.
        runs_per_job: most runs that are packed into a job.
        workers: of a job: runs side by side in it; one a core of the job by default.
        threads: of each.
        jobs: most jobs at once.
        timeout_min: minutes that a job may take.
        slurm: every ``slurm_*`` key, passed to submitit.
        driver: what the driver's job has instead, with ``--detach``.
    """

    kind: ClassVar[str] = "slurm"
    executor: str = "slurm"
    runs_per_job: int = 1
    workers: int | None = None
    threads: int | None = None
    jobs: int = 10
    timeout_min: int = 240
    slurm: Mapping[str, Any] = field(default_factory=dict)
    driver: Mapping[str, Any] = field(default_factory=dict)


Cluster: TypeAlias = LocalCluster | RayCluster | SlurmCluster

_KINDS: Mapping[str, type[Cluster]] = {
    each.kind: each for each in (LocalCluster, RayCluster, SlurmCluster)
}
_PATIENCE = 3.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_COUNTS = ("workers", "threads", "runs_per_job", "jobs", "timeout_min", "memory")
_AMOUNTS = ("num_cpus", "num_gpus")
_TEXTS = ("address", "working_dir", "executor")
_PREFIX = "slurm_"


def read(given: str) -> Cluster:
    """Read a cluster file; anything that does not end in .yml is the address of a Ray cluster.

    Raises:
        ClusterError: the file is missing or not YAML, or a key or a value is none that it can have.

    Example:
        >>> read("10.0.0.1:6379").address
        '10.0.0.1:6379'
    """
    if not given.endswith((".yml", ".yaml")):
        return _checked(RayCluster(address=given), given)
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ClusterError(f"cannot read the cluster file {given}: {reason}") from error
    return parse(text, given)


def reach(cluster: RayCluster) -> None:
    """Refuse a cluster that cannot be used from here, within seconds.

    Raises:
        ClusterError: ray is not installed, or no Ray cluster answers at the address.
    """
    if find_spec("ray") is None:
        raise ClusterError("--cluster needs ray; pip install 'svag[ray]'")
    if cluster.address == "auto" or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    host, _, port = cluster.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as found:
            found.sendall(_GREETING)
            answer = found.recv(9)
    except (OSError, OverflowError) as error:
        reason = str(error)
    else:
        if answer[3:4] == b"\x04":  # settings, the first frame of HTTP/2 that gRPC sends
            return
        reason = "what listens there is something else"
    raise ClusterError(
        f"no Ray cluster answers at {cluster.address} ({reason}); start one with `ray start --head "
        f"--port={port}` on {host}, or give the address of another"
    )


def parse(text: str, name: str) -> Cluster:
    """Read the text of a cluster file.

    Args:
        text: YAML.
        name: of the file, for messages.

    Raises:
        ClusterError: as :func:`read`.
    """
    content = _mapping(text, name)
    kind = content.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        hint = nearest(str(kind), _KINDS)
        raise ClusterError(f"{name}: kind is {kind!r}; write kind: ray, slurm or local.{hint}")
    made = _KINDS[kind]
    known = {f.name for f in fields(made)} - {"slurm"}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if kind == "slurm" and isinstance(key, str) and key.startswith(_PREFIX):
            values.setdefault("slurm", {})[key] = value
        elif key in known:
            values[key] = _value(key, value, name)
        else:
            more = f"; all that begin with {_PREFIX}" if kind == "slurm" else ""
            raise ClusterError(
                f"{name}: {key!r} is no key of a {kind} cluster.{nearest(str(key), known)} "
                f"Known: {', '.join(sorted(known))}{more}"
            )
    return _checked(made(**values), name)


def _mapping(text: str, name: str) -> dict[Any, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ClusterError(
            "a cluster file needs PyYAML; pip install 'svag[ray]' or 'svag[slurm]'"
        ) from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"{name} is not YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ClusterError(f"{name}: a cluster file has lines `key: value`, first kind: ray")
    return content


def _value(key: str, value: Any, name: str) -> Any:
    """Return a value of the right type and size."""
    if key in _COUNTS:
        right, what = type(value) is int and value >= 1, "a whole number of at least 1"
    elif key in _AMOUNTS:
        right, what = _is_amount(value), "a number of at least 0"
    elif key in _TEXTS:
        right, what = isinstance(value, str) and bool(value), "a text"
    elif key == "resources":
        right = isinstance(value, dict) and all(
            isinstance(each, str) and _is_amount(amount) for each, amount in value.items()
        )
        what = "a mapping of names to numbers of at least 0"
    else:
        right = isinstance(value, dict) and all(
            str(each).startswith(_PREFIX) or each == "timeout_min" for each in value
        )
        what = f"a mapping of keys that begin with {_PREFIX}, or timeout_min"
    if not right:
        raise ClusterError(f"{name}: {key} is {value!r}; give {what}")
    return value


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _checked(cluster: Cluster, name: str) -> Cluster:
    """Refuse what single values do not show."""
    if isinstance(cluster, SlurmCluster) and cluster.executor not in ("slurm", "local"):
        raise ClusterError(f"{name}: executor is {cluster.executor!r}; give slurm or local")
    if not isinstance(cluster, RayCluster):
        return cluster
    address = cluster.address
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdecimal()):
        raise ClusterError(
            f"{name}: {address!r} is no address of a Ray cluster; give host:port of its head, as "
            "`ray start --address` takes it, auto on one of its nodes, or a file that ends in .yml"
        )
    if not cluster.needs:
        raise ClusterError(f"{name}: a run takes nothing; give num_cpus, num_gpus or resources")
    return cluster
