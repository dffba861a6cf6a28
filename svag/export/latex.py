"""A study's methods as a LaTeX table (booktabs)."""

import math
from collections.abc import Sequence
from typing import Final

from svag.analysis.results import Figure, MethodResult
from svag.analysis.study import Analysis
from svag.report.numbers import MINUS, decimals, number

_ESCAPED: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "\n": " ",
    }
)


def escaped(text: str) -> str:
    r"""Return a text as LaTeX prints it.

    Example:
        >>> print(escaped("torch.optim.SGD(weight_decay=5 %)"))
        torch.optim.SGD(weight\_decay=5 \%)
    """
    return text.translate(_ESCAPED)


def methods_table(analysis: Analysis) -> str:
    r"""Return the table: every method's step size, runs, and figures as mean and deviation.

    It needs ``\usepackage{booktabs}``. Runs that diverged are in no mean and are counted.
    """
    figures = [analysis.judged, *(f for f in analysis.figures if f != analysis.judged)]
    digits = [
        decimals([result.final[f.name] for result in analysis.methods.values()], f.quantity)
        for f in figures
    ]
    lost = any(result.diverged for result in analysis.methods.values())
    head = ["Method", "Step size", "$n$", *(["diverged"] if lost else []), *map(_headed, figures)]
    rows = [_row(result, figures, digits, lost=lost) for result in analysis.methods.values()]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_caption(analysis)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"    \toprule",
        _line(head),
        r"    \midrule",
        *(_line(row) for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(analysis: Analysis) -> str:
    base = analysis.study.base
    most = max(result.many for result in analysis.methods.values())
    deviation = ", mean $\\pm$ standard deviation" if most > 1 else ""
    return (
        f"{escaped(base.problem)}, {base.steps} steps: final figures of $n$ runs{deviation} "
        f"(study {analysis.study.id})."
    )


def _headed(figure: Figure) -> str:
    unit = f" ({figure.quantity.unit})" if figure.quantity.unit else ""
    return escaped(f"{figure.title[0].upper()}{figure.title[1:]}{unit}")


def _row(
    result: MethodResult, figures: Sequence[Figure], digits: Sequence[int], *, lost: bool
) -> list[str]:
    return [
        escaped(result.entrant.name),
        _step_size(result.lr),
        str(len(result.runs)),
        *([str(result.diverged)] if lost else []),
        *(_spread(result, figure, n) for figure, n in zip(figures, digits, strict=True)),
    ]


def _spread(result: MethodResult, figure: Figure, digits: int) -> str:
    value = result.final[figure.name]
    scale = 100.0 if figure.quantity.percent else 1.0
    if not math.isfinite(value.mean):
        return "--"
    mean = _number(scale * value.mean, digits)
    if not math.isfinite(value.sd):
        return f"${mean}$"
    return rf"${mean} \pm {_number(scale * value.sd, digits)}$"


def _number(value: float, digits: int) -> str:
    """Write a number in LaTeX's math mode, a tiny one with a power of ten."""
    return _in_powers(number(value, digits).replace(MINUS, "-"))


def _step_size(lr: float) -> str:
    return f"${_in_powers(f'{lr:g}')}$" if math.isfinite(lr) else "--"


def _in_powers(text: str) -> str:
    mantissa, power, exponent = text.partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}" if power else text


def _line(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"
