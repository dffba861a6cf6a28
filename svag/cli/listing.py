"""``svag problems`` and ``svag methods`` list what is built in; ``svag figure`` draws figures."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from svag.anatomy import METHODS
from svag.errors import RecordError, UnknownName


def list_problems() -> None:
    """List the built-in problems."""
    from svag import problems

    table = Table("problem", "what it is", "batch", "steps (quick)", box=None, pad_edge=False)
    for name in problems.PROBLEMS:
        task = problems.get(name)
        lengths = f"{task.steps} ({task.quick_steps})"
        table.add_row(name, task.description, str(task.batch_size), lengths)
    Console().print(table)


def list_methods() -> None:
    """Show the table of methods: theta <- theta - lr * (direction * factor)."""
    columns = ("key", "method", "sign", "adapted", "update", "state", "lr", "class")
    table = Table(*columns, box=None, pad_edge=False)
    for row in METHODS.values():
        anatomy = row.anatomy
        table.add_row(
            row.key,
            row.name,
            "yes" if anatomy.sign else "-",
            "yes" if anatomy.adapted else "-",
            str(anatomy),
            ", ".join(anatomy.buffers) or "-",
            f"{row.lr:g}",
            f"svag.{row.optimizer}",
        )
    Console(width=max(120, Console().width)).print(table, highlight=False)
    print(
        "\nWith options: m-svag(beta=0.95), adam(weight_decay=1e-4, decoupled), "
        "m-svag@within-batch. Others: an update in symbols as above, torch.optim.NAME(...), "
        "module:Class, file.py:function."
    )


def figure(
    name: Annotated[
        str,
        typer.Argument(help="2, 3, 4, theorem1, wilson, p-diag, or all.", metavar="NAME"),
    ],
    out: Annotated[Path, typer.Option(help="Folder of pictures and tables.")] = Path("figures"),
) -> None:
    """Reproduce a figure of the paper's theory, with its numbers; seconds to a minute each."""
    from svag.theory.figures import FIGURES, draw

    if name in ("1", "5"):
        raise UnknownName(
            f"figure {name} is made of training runs: `svag compare PROBLEM` makes "
            + ("the table of Figure 1 in its report" if name == "1" else "Figure 5 as figure5.png")
        )
    console = Console(stderr=True)
    for one in FIGURES if name == "all" else (name,):
        if name == "all":
            console.print(f"figure {one} ...", highlight=False)
        try:
            files = draw(one, out)
        except OSError as error:
            raise RecordError(
                f"cannot write to {out}: {error.strerror}; choose another folder with --out"
            ) from error
        for path in files:
            print(path)
