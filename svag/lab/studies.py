"""A study: the methods to compare, the number of runs and the protocol, in a file by its records.

``DIR/studies/<id>.json`` has all settings of the plan. With it the report can replay the plan on
the records, and a study that is continued begins its searches at the same step sizes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from svag.entrants import entrant
from svag.errors import InvalidOption, RecordError, SvagError
from svag.lab.record_format import WrongLine, check_run
from svag.lab.run import STUDY, Run
from svag.lab.search import StepSizes

Protocol = Literal["tuned", "paper"]

MOST_SEEDS = 999
SELECTION_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of methods on one problem.

    Attributes:
        base: the run that all its runs are variations of.
        methods: keys of the methods.
        seeds: number of final runs of every method, n.
        protocol: ``tuned``: several seeds choose among the best step sizes of the search, and n
            fresh seeds give the figures; ``paper``: the search with one seed chooses (§6.1).
        selection_seeds: number of seeds with which candidates are first run.
        lrs: fixed step sizes, without a search, by method.
        grids: step sizes to search among, by method, instead of the default grid.
        starts: numbers of the step sizes at which searches begin, by method.
        code: versions of the code of optimizers from outside svag, by method.
        smallest_effect: smallest difference of the metric that matters; None for the default.
        source: the text by which the user named the problem.
    """

    base: Run
    methods: tuple[str, ...]
    seeds: int
    protocol: Protocol = "tuned"
    selection_seeds: int = SELECTION_SEEDS
    lrs: Mapping[str, float] = field(default_factory=dict)
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    smallest_effect: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("seeds", self.seeds), ("selection_seeds", self.selection_seeds)):
            if not (type(value) is int and 1 <= value <= MOST_SEEDS):
                raise InvalidOption(f"{name}={value}: give a number from 1 to {MOST_SEEDS}")
        if self.base.steps < 1:
            raise InvalidOption(f"steps={self.base.steps}: a run needs at least 1")
        if self.protocol not in get_args(Protocol):
            raise InvalidOption(f"protocol={self.protocol!r}: choose tuned or paper")
        for key in self.methods:
            if entrant(key).key != key:
                raise InvalidOption(f"method {key!r}: name it by its key, {entrant(key).key!r}")
        self._check_step_sizes()
        least = self.smallest_effect
        if least is not None and not 0 < least < math.inf:
            raise InvalidOption(f"smallest effect {least}: give a finite number above 0")
        self._check_records()

    def _check_step_sizes(self) -> None:
        for key in (*self.lrs, *self.grids):
            if key not in self.methods:
                raise InvalidOption(
                    f"a step size is given for {key!r}, which is not compared; "
                    f"compared are {', '.join(self.methods)}"
                )
        settled = [(key, lr) for key, lr in self.lrs.items()]
        for key, lr in settled + [(key, lr) for key, grid in self.grids.items() for lr in grid]:
            if not 0 < lr < math.inf:
                raise InvalidOption(f"step size {lr} for {key!r}: give a finite number above 0")
        for key, points in self.grids.items():
            if not points or len(set(points)) != len(points):
                raise InvalidOption(f"grid {points} for {key!r}: give step sizes, each once")
            if key in self.lrs:
                raise InvalidOption(f"{key!r} has a step size and a grid of them; give one of both")

    def _check_records(self) -> None:
        """Raise if the records of the runs could not be read again, since a value is too large."""
        for key in self.methods:
            try:
                check_run({**asdict(self.run(key)), "lr": 1.0})
            except WrongLine as wrong:
                raise InvalidOption(f"{key!r}: {wrong}") from None

    @property
    def id(self) -> str:
        """Id of the study: a hash of its fields except ``starts`` and ``source``."""
        canonical = json.dumps(self._settled(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all its runs share."""
        return {key: getattr(self.base, key) for key in STUDY}

    def run(self, key: str) -> Run:
        """Return the run that all runs of a method are variations of."""
        row = entrant(key)
        beta, beta2 = (*row.betas, None, None)[:2]
        symbols = "" if row.anatomy is None else str(row.anatomy)
        return replace(
            self.base,
            method=key,
            anatomy=symbols,
            optimizer=self.code.get(key, ""),
            beta=beta,
            beta2=beta2,
        )

    def _settled(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("starts", "source")}


@dataclass(frozen=True)
class Filed:
    """A study that is stored in a folder, and when it was last started or continued."""

    study: Study
    when: str


def keep(directory: Path, study: Study) -> Study:
    """Write a study's file, or update its time if it exists.

    Returns:
        The study, with the ``starts`` of the first time.

    Raises:
        RecordError: the file cannot be read or written.
    """
    path = directory / "studies" / f"{study.id}.json"
    if path.exists():
        study = replace(study, starts=_read(path).study.starts)
    content = {"when": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(study)}
    scratch = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise RecordError(
            f"cannot write {path}: {error.strerror}; choose another folder with --out"
        ) from error
    return study


def filed(directory: Path) -> list[Filed]:
    """Return the studies of a folder, the latest first.

    Raises:
        RecordError: a file there is not a study's.
    """
    found = [_read(path) for path in sorted((directory / "studies").glob("*.json"))]
    return sorted(found, key=lambda one: (one.when, one.study.id), reverse=True)


def _read(path: Path) -> Filed:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        when, base = content.pop("when"), content.pop("base")
        datetime.fromisoformat(when)
        content["methods"] = tuple(content["methods"])
        content["grids"] = {key: tuple(points) for key, points in content["grids"].items()}
        known = {f.name for f in fields(Run)}
        study = Study(base=Run(**{k: base[k] for k in known}), **content)
        _check(study)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SvagError) as error:
        raise RecordError(
            f"{path} is not the file of a study ({' '.join(str(error).split())}); move it away and "
            "run `svag compare` again, which repeats no run"
        ) from error
    if study.id != path.stem:
        raise RecordError(
            f"{path} holds the study {study.id}; name it {study.id}.json, or move it away and run "
            "`svag compare` again"
        )
    return Filed(study, when)


def _check(study: Study) -> None:
    """Raise if a value has the wrong type, which dataclasses do not check."""
    if not all(type(number) is int and number in StepSizes() for number in study.starts.values()):
        raise ValueError(f"starts={study.starts}: they are numbers of step sizes of the grid")
    if not all(isinstance(key, str) for key in (*study.starts, *study.grids, *study.lrs)):
        raise ValueError("methods are named by their keys")
    study.base.quantity  # noqa: B018 - raises if the metric is invalid
