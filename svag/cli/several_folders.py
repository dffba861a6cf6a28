"""``svag report`` of several folders: reads their studies and combines them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svag.errors import InvalidOption, RecordError

if TYPE_CHECKING:
    from svag.analysis.contrasts import Effect
    from svag.analysis.several_problems import Several
    from svag.analysis.study import Analysis


@dataclass(frozen=True)
class Read:
    """Studies of several folders, the folders they are from, and what was skipped and why."""

    several: "Several"
    folders: list[Path]
    skipped: list[str]


def read(directories: Sequence[Path]) -> Read:
    """Analyse the latest study of every folder; those without records are skipped.

    The paper's problems come first, in its order.

    Raises:
        RecordError: a folder does not exist, a record cannot be read, two studies are of one
            problem, or no folder is left.
    """
    from svag.analysis.dissection_records import FILE
    from svag.analysis.published import place
    from svag.analysis.several_problems import how_far, together
    from svag.analysis.study import NothingFinished, analyse, chosen_study
    from svag.lab import records

    found: list[tuple[Analysis, Path]] = []
    skipped = []
    for directory in _once(directories):
        if not (directory / "records").is_dir() and not (directory / "studies").is_dir():
            dissected = (directory / FILE).is_file()
            hint = f" but a dissection's, whose page `svag report {directory}` makes" * dissected
            skipped.append(f"{directory}: no records{hint}")
            continue
        try:
            found.append((analyse(directory), directory))
        except NothingFinished:
            done, about = how_far(chosen_study(directory), records.load(directory))
            skipped.append(f"{directory}: no final run yet, {done} of about {about} runs are there")
    if not found:
        raise RecordError(
            f"none of the {len(directories)} folders has a study with final runs "
            f"({'; '.join(skipped)}); make one with `svag compare PROBLEM --out DIR`"
        )
    found.sort(key=lambda pair: place(pair[0].study.base.problem))
    analyses = [analysis for analysis, _ in found]
    return Read(together(analyses), [folder for _, folder in found], skipped)


def _once(directories: Sequence[Path]) -> list[Path]:
    """Leave out folders that are named twice; refuse one that does not exist."""
    absent = [directory for directory in directories if not directory.exists()]
    if absent:
        raise RecordError(
            f"there is no folder {absent[0]}; name folders that `svag compare` filled"
        )
    return list({directory.resolve(): directory for directory in directories}.values())


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the common parent of the folders, where their page is written by default.

    Raises:
        InvalidOption: they have different parents.
    """
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise InvalidOption(
            f"the folders are not all in one ({', '.join(sorted(map(str, parents)))}); say where "
            "their page goes with --out"
        )
    return Path(os.path.relpath(parents.pop()))


def check_options(study: str | None, target: float | None) -> None:
    """Refuse options that apply to the report of a single folder only.

    Raises:
        InvalidOption: one is given.
    """
    for name, value in (("--study", study), ("--target", target)):
        if value is not None:
            raise InvalidOption(f"{name} {value} applies to one folder only; report that one alone")


def as_data(several: "Several") -> dict[str, Any]:
    """Return the content of ``--json`` for several problems, beside each problem's own figures."""
    ranks = several.ranks
    return {
        "not_judged": dict(several.not_judged),
        "observations": [
            {
                "claim": check.claim,
                "outcome": check.outcome,
                "because": check.because,
                "problems": {name: one.outcome for name, one in check.readings.items()},
            }
            for check in several.checks
        ],
        "effects_on_training_loss": {
            problem: {name: _effect(effect) for name, effect in family.loss.items()}
            for problem, family in several.families.items()
        },
        "mean_ranks": dict(ranks.means) if ranks else {},
    }


def _effect(effect: "Effect") -> dict[str, Any]:
    return {"estimate": effect.estimate, "interval": effect.interval}
