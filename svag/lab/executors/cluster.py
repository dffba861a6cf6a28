"""Cluster files: which cluster to use, and the resources of a run on it.

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
    """A cluster file cannot be used, or the cluster cannot be reached or refuses a request."""


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """Processes of this machine.

    Attributes:
        workers: number of processes, each with one run at a time; None: chosen by measuring.
        threads: threads of each process; None: chosen by measuring.
    """

    kind: ClassVar[str] = "local"
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A running Ray cluster.

    Attributes:
        address: ``host:port`` of its head, or ``auto`` if this machine is one of its nodes.
        num_cpus: cores of a run.
        num_gpus: GPUs of a run; with a fraction, several runs share one.
        memory: bytes of memory reserved for a run.
        resources: custom resources of a run, by name.
        threads: threads of a run; by default as many as its cores.
        workers: most runs at a time; None for as many as the nodes have room for.
        working_dir: folder of the user's code, which is copied whole to the nodes; by default the
            Python files beside the problem's file are copied.
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
        """The resources that a run needs, by Ray's names."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A Slurm cluster, through submitit; the nodes share the folder of the records.

    Attributes:
        executor: ``slurm``, or ``local`` for jobs that are processes of this machine.
        runs_per_job: most runs in a job.
        workers: worker processes of a job, each with one run at a time; by default one per core.
        threads: threads of each worker.
        jobs: most jobs at a time.
        timeout_min: time limit of a job in minutes.
        slurm: all ``slurm_*`` keys, which are passed to submitit.
        driver: keys that replace these for the driver's job, with ``--detach``.
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

    @property
    def gpus(self) -> bool:
        """Whether jobs are given GPUs."""
        further = self.slurm.get(f"{_PREFIX}additional_parameters")
        given = {**self.slurm, **(further if isinstance(further, Mapping) else {})}
        return any(
            "gpu" in f"{key}={value}" and str(value).rpartition(":")[2] != "0"
            for key, value in given.items()
            if str(key).removeprefix(_PREFIX) not in (*_FREE_TEXTS, "additional_parameters")
        )


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
_OWN_KEYS = ("CPU", "GPU", "memory")
_FREE_TEXTS = ("account", "comment", "job_name", "setup", "wckey")


def read(given: str) -> Cluster:
    """Read a cluster file; a text without the ending .yml is the address of a Ray cluster.

    Raises:
        ClusterError: the file is missing or not YAML, or a key or a value is not allowed.

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
    """Check within seconds that a Ray cluster can be used from this machine.

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
        if answer[3:4] == b"\x04":  # a SETTINGS frame, which gRPC sends first
            return
        reason = "another service listens there"
    raise ClusterError(
        f"no Ray cluster answers at {cluster.address} ({reason}); start one with `ray start --head "
        f"--port={port}` on {host}, or give the address of another"
    )


def parse(text: str, name: str) -> Cluster:
    """Parse the text of a cluster file.

    Args:
        text: YAML.
        name: name of the file, for messages.

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
            values.setdefault("slurm", {})[key] = _refuse_empty(key, value, name)
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
        document = yaml.compose(text, yaml.SafeLoader)
        _check_nodes(document, name)
        content = None if document is None else yaml.SafeLoader("").construct_document(document)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"{name} is not YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ClusterError(f"{name}: a cluster file has lines `key: value`, first kind: ray")
    return content


def _check_nodes(node: Any, name: str) -> None:
    """Refuse a key that stands twice, and leave 1:30, which is 90 in YAML 1.1, a text."""
    waiting, met = [node], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in met or node is None:
            continue
        met.add(id(node))
        if isinstance(node.value, str):
            if ":" in node.value and node.tag.endswith((":int", ":float")):
                node.tag = "tag:yaml.org,2002:str"
            continue
        parts = [pair if isinstance(pair, tuple) else (pair,) for pair in node.value]
        keys = [pair[0].value for pair in parts if len(pair) == 2]
        for key in keys:
            if keys.count(key) > 1:
                raise ClusterError(f"{name}: the key {key!r} stands twice; write it once")
        waiting += [one for pair in parts for one in pair]


def _value(key: str, value: Any, name: str) -> Any:
    """Return a key's value; raise if its type or size is wrong."""
    if key in _COUNTS:
        right, what = type(value) is int and value >= 1, "a whole number of at least 1"
    elif key in _AMOUNTS:
        whole = key != "num_gpus" or (_is_amount(value) and (value < 1 or value == int(value)))
        right = _is_amount(value) and whole
        what = "a number of at least 0" + ", above 1 a whole one" * (not whole)
    elif key in _TEXTS:
        right, what = isinstance(value, str) and bool(value), "a text"
    elif key == "resources":
        right = isinstance(value, dict) and all(
            isinstance(each, str) and each and each not in _OWN_KEYS and _is_amount(amount)
            for each, amount in value.items()
        )
        what = (
            "a mapping of names to numbers of at least 0; cores, GPUs and memory are num_cpus, "
            "num_gpus and memory"
        )
    else:
        right = isinstance(value, dict) and all(
            str(each).startswith(_PREFIX) or each == "timeout_min" for each in value
        )
        what = f"a mapping of keys that begin with {_PREFIX}, or timeout_min"
        for each, setting in value.items() if right else ():
            if each == "timeout_min":
                _value(each, setting, f"{name}: driver")
            else:
                _refuse_empty(each, setting, f"{name}: driver")
    if not right:
        raise ClusterError(f"{name}: {key} is {value!r}; give {what}")
    return value


def _refuse_empty(key: str, value: Any, name: str) -> Any:
    """Return a setting of Slurm's; raise if it has no value."""
    if value is None or value == "":
        raise ClusterError(f"{name}: {key} has no value; give one, or leave the key out")
    return value


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _checked(cluster: Cluster, name: str) -> Cluster:
    """Check the executor, the address and the resources of a cluster."""
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
        raise ClusterError(
            f"{name}: a run would use no resource; give num_cpus, num_gpus or resources"
        )
    return cluster
