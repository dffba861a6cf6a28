"""The tables of a dissection's page, as text; every number is from the records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN, WITH_SIGN, WITHOUT_SIGN
from svag.analysis.dissection_records import Row
from svag.report.dissection.noise_charts import eta
from svag.report.dissection.sorted_records import PLAIN, WHOLE, Found, interval_of, known
from svag.report.numbers import MINUS, NONE, number, significant, step_size

_DIGITS_OF_LOSS = 4
_LARGE = 10.0  # ratios from here on have three digits
_PAIRS = {WITHOUT_SIGN: ((False, True), (False, False)), WITH_SIGN: ((True, True), (True, False))}


@dataclass(frozen=True, slots=True)
class Entry:
    """A number as text: what comes before and after it, and whether its interval tells."""

    title: str
    value: str
    interval: str = ""
    counts: bool = False
    of: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What one step and the race say of a method, as text."""

    key: str
    name: str
    worth: str
    interval: str
    ratio: str
    ratio_interval: str
    lr: str
    lr_interval: str
    draws: str
    race_loss: str
    race_lr: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A parameter's noise, as text."""

    number: str
    name: str
    entries: str
    scale: str
    eta: tuple[str, ...]
    success: str
    unresolved: str
    still: str


def methods(found: Found) -> list[MethodRow]:
    """Return a row for each method."""
    rows = []
    for key in found.entrants:
        step, ratio = found.steps.get(key, {}), found.worths.get((key, found.reference), {})
        reference = key == found.reference and bool(step)
        loss, lr = _raced(found, key)
        rows.append(
            MethodRow(
                key=key,
                name=found.name(key),
                worth=significant(known(step.get("value"))),
                interval=brackets(interval_of(step)),
                ratio="1" if reference else factor(ratio)[0],
                ratio_interval="" if reference else factor(ratio)[1],
                lr=_step_lr(step),
                lr_interval=brackets(interval_of(step, "lr_interval")) if _helps(step) else "",
                draws=f"{step['draws']:,}" if step else NONE,
                race_loss=loss,
                race_lr=lr,
            )
        )
    return rows


def cell(found: Found, key: str) -> list[Entry]:
    """Return what a cell of the 2x2 table says of its method."""
    entries, step = [], found.steps.get(key)
    if step is not None:
        worth = found.worths.get((key, found.reference))
        if worth is not None and worth["ratio"] is not None:
            entries.append(_ratio("one step", worth, f"{found.name(found.reference)}'s"))
        value, at = significant(known(step["value"])), f"at lr {_step_lr(step)}"
        title = "worth" if entries else "one step is worth"
        entries.append(Entry(title, value, brackets(interval_of(step)), after=at))
    if found.race is not None and key in found.race["lrs"]:
        loss, lr = _raced(found, key)
        title = "loss after" if found.steps else "after"
        title += f" {found.race['steps']:,} steps"
        entries.append(Entry(title, loss, after=f"at lr {lr}"))
    return entries


def margin(found: Found, name: str) -> list[Entry]:
    """Return an effect on one step and on the race; empty where there is none."""
    if name in _PAIRS:
        one, other = (found.cells[place] for place in _PAIRS[name])
        row = found.worths.get((one, other))
    else:
        row = found.effects.get((PLAIN, name))
    entries = []
    if row is not None and row["ratio"] is not None:
        entries.append(_ratio("one step", row))
    raced = found.race_effects.get(name)
    if raced is not None and raced["estimate"] is not None:
        entries.append(_difference("race", raced))
    return entries


def margins(found: Found) -> Mapping[str, list[Entry]]:
    """Return the effects in the margins of the 2x2 table, by name."""
    if not found.cells:
        return {}
    names = (SIGN, ADAPTATION, INTERACTION, WITHOUT_SIGN, WITH_SIGN)
    return {name: margin(found, name) for name in names}


def layers(found: Found) -> list[LayerRow]:
    """Return the noise of each parameter, and of all of them last."""
    rows = [_layer(str(place), row, found) for place, row in enumerate(found.layers, 1)]
    if found.overall is not None and len(found.layers) != 1:
        rows.append(_layer("", {**found.overall, "name": "all together"}, found))
    return rows


def eigenvalues(found: Found) -> list[tuple[str, str, str, str]]:
    """Return the extreme eigenvalues: matrix, which, value, and how exact."""
    rows = []
    for row in found.curvature.get("eigenvalue", []):
        residual = known(row.get("residual"))
        exact = f"± {significant(residual, 2)}" if residual == residual else NONE
        if not row.get("converged", True):
            exact += ", not converged"
        value = significant(known(row["value"]), _DIGITS_OF_LOSS)
        rows.append((matrix(row["matrix"]), row["which"], value, exact))
    return rows


@dataclass(frozen=True, slots=True)
class Diagonal:
    """p_diag as text: the matrices, and their entries for the whole matrix and for blocks."""

    matrices: list[str]
    whole: list[tuple[str, list[Entry]]]
    blocks: list[tuple[str, list[Entry]]]


def diagonal(found: Found) -> Diagonal:
    """Return p_diag of the whole matrix and of blocks."""
    rows = found.curvature.get("p_diag", [])
    matrices = list(dict.fromkeys(row["matrix"] for row in rows))
    blocks: dict[str, dict[str, Entry]] = {}
    for row in rows:
        title = f"{row['rows']:,} of {row['of']:,} rows"
        entry = Entry(title, significant(known(row["value"])), brackets(interval_of(row)))
        blocks.setdefault(row["block"], {})[row["matrix"]] = entry
    nothing = Entry("", NONE)
    table = {name: [own.get(one, nothing) for one in matrices] for name, own in blocks.items()}
    whole = [("whole matrix", table.pop(WHOLE))] if WHOLE in table else []
    return Diagonal([matrix(name) for name in matrices], whole, list(table.items()))


def along(found: Found) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return what a step is worth by the line search, the Hessian and its Gauss-Newton part.

    For each method: its key, its name, and pairs of worth and step size.
    """
    rows = []
    for row in found.curvature.get("along", []):
        key = row["method"]
        step = found.steps.get(key, {})
        pairs = [(significant(known(step.get("value"))), _step_lr(step))]
        for name in ("hessian", "ggn"):
            worth, lr = known(row.get(f"improvement_{name}")), known(row.get(f"lr_{name}"))
            pairs.append((significant(worth), significant(lr, 2)))
        rows.append((key, found.name(key), pairs))
    return rows


def matrix(name: str) -> str:
    """Return a matrix's name in words."""
    return {"hessian": "Hessian", "ggn": "Gauss-Newton"}.get(name, name)


def brackets(bounds: Sequence[float] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write an interval; empty if there is none.

    Args:
        bounds: both ends; None for no interval.
        digits: significant digits.
        signed: whether positive ends get a plus sign.
    """
    if bounds is None:
        return ""
    low, high = (significant(bound, digits, signed=signed) for bound in bounds)
    return f"[{low}, {high}]"


def factor(row: Row) -> tuple[str, str]:
    """Write a ratio and its interval, with as many decimals as the interval calls for."""
    value, bounds = known(row.get("ratio")), interval_of(row)
    if bounds is None or not value < _LARGE:
        return significant(value), brackets(bounds)
    width = max(bounds[1] - bounds[0], 1e-9)
    decimals = min(max(math.ceil(-math.log10(width)), 2), 4)
    low, high = (number(bound, decimals) for bound in bounds)
    return number(value, decimals), f"[{low}, {high}]"


def _ratio(title: str, row: Row, of: str = "") -> Entry:
    bounds = interval_of(row)
    counts = bounds is not None and not bounds[0] <= 1 <= bounds[1]
    value, around = factor(row)
    return Entry(title, value if of else f"{value} ×", around, counts, of)


def _difference(title: str, row: Row) -> Entry:
    bounds = interval_of(row)
    counts = bounds is not None and not bounds[0] <= 0 <= bounds[1]
    value = significant(row["estimate"], signed=True)
    return Entry(title, value, brackets(bounds, signed=True), counts)


def _helps(step: Row) -> bool:
    return known(step.get("value")) > 0


def _step_lr(step: Row) -> str:
    """Write the best step size of a step; with a mark at the end of those that were measured."""
    if not _helps(step):
        return NONE
    mark = {"lowest": " or less", "highest": " or more"}.get(step.get("edge", ""), "")
    return significant(known(step["lr"])) + mark


def _raced(found: Found, key: str) -> tuple[str, str]:
    """Return a method's loss and step size in the race."""
    if found.race is None or key not in found.race["lrs"]:
        return NONE, NONE
    lr = found.race["lrs"][key]
    if lr is None:
        return "no best step size" if key in found.race.get("unbounded", ()) else "diverged", NONE
    return significant(known(found.race["losses"][key]), _DIGITS_OF_LOSS), step_size(lr)


def _layer(place: str, row: Row, found: Found) -> LayerRow:
    return LayerRow(
        number=place,
        name=row["name"],
        entries=f"{row['entries']:,}",
        scale=noise_scale(row),
        eta=tuple(eta(row, place) for place in range(len(row["eta"]))),
        success=percent(row["success"]),
        unresolved=percent(row["unresolved"]),
        still=percent(row["still"]),
    )


def noise_scale(row: Row) -> str:
    """Write a noise scale in examples, or in mini-batches if their size is not known."""
    if not known(row["grad_sq"]) > 0:
        return "∞" if known(row["variance"]) > 0 else NONE
    if row["noise_scale"] is not None:
        return significant(row["noise_scale"])
    return f"{significant(row['variance'] / row['grad_sq'])} batches"


def percent(share: float | None) -> str:
    """Write a share in per cent."""
    return NONE if share is None else f"{100 * share:.1f} %".replace("-", MINUS)
