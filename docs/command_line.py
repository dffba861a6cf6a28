"""Write the page of the ``svag`` command from the command itself: every option and its help."""

import re
from pathlib import Path
from typing import Any

import typer

from svag.cli import app


def write(file: Path) -> None:
    """Write the options of every command as Markdown, for ``reference/command-line.md``."""
    root = typer.main.get_command(app)
    parts = [_section(name, command, 2) for name, command in root.commands.items()]  # type: ignore[attr-defined]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts), encoding="utf-8")


def _section(name: str, command: Any, level: int) -> str:
    text = f"{'#' * level} svag {name}\n\n{_plain(command.help)}\n"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    if arguments:
        text += "\n" + "".join(f"- `{one.name.upper()}`: {_plain(one.help)}\n" for one in arguments)
    if options:
        text += "\n| option | what it does |\n|---|---|\n"
        text += "".join(_row(one) for one in options if one.name != "help")
    for child, sub in getattr(command, "commands", {}).items():
        text += "\n" + _section(f"{name} {child}", sub, level + 1)
    return text


def _row(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    return f"| {flags} | {_plain(option.help)}{_default(option)} |\n"


def _default(option: Any) -> str:
    value = option.default
    if value in (None, False, True, (), []) or callable(value) or not option.show_default:
        return ""
    return f" Default: `{value.value if hasattr(value, 'value') else value}`."


def _plain(text: str | None) -> str:
    """One line, with nothing that Markdown would take for a table or a tag."""
    line = re.sub(r"\s+", " ", (text or "").split("\f")[0]).strip()
    line = re.sub(r"(?<![`\w-])(--[\w-]+)", r"`\1`", line)
    return re.sub(r"(?<!`)<", r"\\<", line).replace("|", r"\|").replace("*", r"\*")
