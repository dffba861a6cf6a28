"""Write ``docs/reproduction.md`` from the records in ``results``: the paper's claims, and ours.

Run ``python docs/make_reproduction.py`` from the repository's root. A problem whose study is not
finished is shown with how far it is, and judged nowhere. What explains a difference to the paper is
a matter of thought: it is taken from ``results/PROBLEM/note.md``, where there is one.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN
from svag.analysis.overview import overview
from svag.analysis.published import PAPER, PUBLISHED, order, place
from svag.analysis.several_problems import Several, how_far, together, why_not_judged
from svag.analysis.study import Analysis, NothingFinished, analyse, chosen_study
from svag.analysis.wording import amount, amount_of, listed
from svag.entrants import entrant
from svag.lab.records import load
from svag.lab.studies import Study
from svag.report.details import turns
from svag.report.numbers import count
from svag.report.overview_tables import departures, protocol

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE.parent / "results"
PAGE: Final = HERE / "reproduction.md"

_TITLES: Final = (
    "The sign aspect dominates",
    "The usefulness of the sign is problem-dependent",
    "Variance adaptation helps",
    "Generalization effects are caused by the sign",
)

_INTRODUCTION: Final = """\
# The paper's claims, and what is found here

L. Balles and P. Hennig, *Dissecting Adam* (ICML 2018), make four observations (§6.2) on four
problems. This page holds them against the runs in `results/`. Written by
`docs/make_reproduction.py` from the records alone; `results/README.md` has the commands.

How to read it: all intervals in the tables of the four observations hold at once with probability
95 %, over all problems that are judged, and include the choice of the step size where it was
searched for; so what is called confirmed or refuted is wrong in 5 % of such comparisons at most.
It is said of runs as long as these, on these problems. "Not decided" is not "no effect".
[verdict.md](verdict.md) has the conditions. The first line of each table says in what these runs
depart from the paper's.
"""


@dataclass(frozen=True)
class Problem:
    """A problem with the study of it, and its analysis where there is one."""

    name: str
    folder: Path
    study: Study
    done: int
    about: int
    analysis: Analysis | None

    @property
    def state(self) -> str:
        """How far it is, and whether it is judged."""
        if self.analysis is None or any(
            not result.outcome.complete for result in self.analysis.methods.values()
        ):
            return f"not finished: {self.done} of about {self.about} runs are there"
        reason = why_not_judged(self.analysis)
        return f"finished, not judged: {reason}" if reason else "finished"


def page(results: Path = RESULTS) -> str:
    """Return the page."""
    problems = sorted(_read(results), key=lambda one: place(one.name))
    finished = [one.analysis for one in problems if one.analysis and _is_finished(one)]
    several = together(finished)
    parts = [_INTRODUCTION, _state_of(problems)]
    if several.judged:
        parts += ["## In short", "\n".join(f"- {text}" for text in overview(several))]
        parts += [_claim(number, several, problems) for number in range(4)]
    parts += [_effects(finished), *_beside_published(finished), _turns(finished), _notes(problems)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _read(results: Path) -> list[Problem]:
    """Read the latest study of every folder that has one."""
    found = []
    for folder in sorted(path for path in results.iterdir() if (path / "studies").is_dir()):
        study, records = chosen_study(folder), load(folder)
        analysis: Analysis | None = None
        with suppress(NothingFinished):  # what there is of it is counted
            analysis = analyse(folder)
        done, about = how_far(study, records)
        found.append(Problem(study.base.problem, folder, study, done, about, analysis))
    return found


def _is_finished(one: Problem) -> bool:
    return one.state.startswith("finished")


def _state_of(problems: Sequence[Problem]) -> str:
    """Say which problems there are runs of, and how far each is."""
    known = {one.name: one for one in problems}
    rows = []
    for name in dict.fromkeys([*PAPER, *known]):
        label = f"{PAPER[name].name} {name}" if name in PAPER else name
        one = known.get(name)
        if one is None:
            rows.append((label, "-", "-", "-", "no runs yet"))
            continue
        base, machines = one.study.base, _machines(one)
        rows.append((label, f"{base.steps:,}", str(one.study.seeds), machines, one.state))
    return "## Runs\n\n" + _table(("problem", "steps", "seeds", "machine", "state"), rows)


def _machines(one: Problem) -> str:
    if one.analysis is None:
        return "-"
    return "; ".join(one.analysis.versions["machine"]) or "-"


def _claim(number: int, several: Several, problems: Sequence[Problem]) -> str:
    """Write one observation: a column a problem, departures first, then paper and here."""
    check = several.checks[number]
    shown = [one for one in problems if one.analysis is not None or one.name in PAPER]
    names = [
        f"{PAPER[one.name].name} {one.name}" if one.name in PAPER else one.name for one in shown
    ]
    said = [PAPER[one.name].said[number] if one.name in PAPER else None for one in shown]
    readings = [check.readings.get(one.name) for one in shown]
    rows = [
        ("departures", *(_departures(one) for one in shown)),
        ("the paper", *(f"**{s.outcome}**: {s.words}" if s else "-" for s in said)),
        (
            "here",
            *(
                f"**{reading.outcome}**: {reading.detail}"
                if reading
                else f"not judged ({one.state})"
                for reading, one in zip(readings, shown, strict=True)
            ),
        ),
    ]
    return "\n\n".join(
        (
            f"## {number + 1}. {_TITLES[number]}: {check.outcome}",
            f"{check.claim} {check.because}",
            _table(("", *names), rows),
        )
    )


def _departures(one: Problem) -> str:
    if one.analysis is None:
        return "-"
    own = departures(one.analysis)
    if own:
        return own
    base = one.study.base
    seeds = count(one.study.seeds, "seed")
    precision = base.autocast or "float32"
    of_ours = f"not a problem of the paper: {base.steps:,} steps, {seeds}, {precision}"
    return f"{of_ours}, {protocol(one.analysis)}"


def _effects(finished: Sequence[Analysis]) -> str:
    """Write the verdict's effects on the metric, which hold together within a problem."""
    rows = [
        (
            f"{one.study.base.problem}: {one.judged.title}",
            *(amount(one.claims.effects[name], one.quantity) for name in _SHOWN),
        )
        for one in finished
        if one.claims is not None
    ]
    if not rows:
        return ""
    lines = [f"{one.study.base.problem}: {_line(one)}" for one in finished if one.claims]
    first = ("departures", "; ".join(lines), "", "")
    about = (
        "The effects on the metric, as each problem's verdict has them: 95 % intervals that hold "
        "together within a problem."
    )
    head = ("problem", "sign", "variance adaptation", "interaction")
    return f"## Effects on the metric\n\n{about}\n\n{_table(head, [first, *rows])}"


_SHOWN: Final = (SIGN, ADAPTATION, INTERACTION)


def _line(one: Analysis) -> str:
    base = one.study.base
    own = departures(one)
    return own or f"{base.steps:,} steps, {count(one.study.seeds, 'seed')}, {protocol(one)}"


def _beside_published(finished: Sequence[Analysis]) -> list[str]:
    """Put final accuracies beside published ones, for runs of the published length."""
    parts = []
    for one in finished:
        known = PUBLISHED.get(one.study.base.problem)
        if known is None or known.steps != one.study.base.steps:
            continue
        here = {
            key: one.methods[key].final[one.judged.name]
            for key in known.test_accuracy
            if key in one.methods and one.methods[key].runs
        }
        rows = [("departures", _line(one), "")]
        for key, spread in here.items():
            sd = f" ± {100 * spread.sd:.2f}" if spread.n > 1 else ""
            own = f"{100 * spread.mean:.2f}{sd} % (n = {spread.n})"
            theirs = amount_of(known.test_accuracy[key], one.quantity)
            rows.append((entrant(key).name, own, theirs))
        ours = order({key: spread.mean for key, spread in here.items()})
        chain = " > ".join(entrant(key).name for key in ours)
        paper = " > ".join(entrant(key).name for key in order(known.test_accuracy))
        parts.append(
            f"## Test accuracy on {one.study.base.problem}\n\n"
            + _table(("method", "here", "published"), rows)
            + f"\n\nOrder here: {chain}. Published: {paper}. RecordLinks: {known.source}."
        )
    return parts


def _turns(finished: Sequence[Analysis]) -> str:
    """Say where the sign's effect changed sides during training, as the paper has it on P2."""
    lines = [f"- {one.study.base.problem}: {text}" for one in finished for text in turns(one)]
    if not lines:
        return ""
    about = (
        "Exploratory: said where intervals at every evaluation, corrected for their number, "
        "exclude 0 on one side and later on the other."
    )
    return "## Where the sign's effect changes sides\n\n" + about + "\n\n" + "\n".join(lines)


def _notes(problems: Sequence[Problem]) -> str:
    """Take in what was written on a problem by hand."""
    notes = [
        f"**{one.name}.** {path.read_text(encoding='utf-8').strip()}"
        for one in problems
        if (path := one.folder / "note.md").is_file()
    ]
    return "## Where it differs, and why\n\n" + "\n\n".join(notes) if notes else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """Write the page; other folders than the repository's own may be named."""
    results = Path(arguments[0]) if arguments else RESULTS
    target = Path(arguments[1]) if len(arguments) > 1 else PAGE
    target.write_text(page(results), encoding="utf-8")
    print(f"wrote {target}: {listed(sorted(one.name for one in _read(results))) or 'nothing yet'}")


if __name__ == "__main__":
    main(sys.argv[1:])
