"""How commands print: tables for people, JSON for scripts."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script, not a table for a reader.")]
PIPED_WIDTH = 160  # columns, where no terminal says how many it has: rich would cut at 80


def print_json(content: Any) -> None:
    """Print strict JSON: a number that is not finite is null."""
    print(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print rows of text, a column a key of the first row; numbers stand to the right."""
    from rich import box  # here: `--help` has its own tables
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in rows[0]:
        is_number = all(row[name][:1] in "-+0123456789" for row in rows if row[name])
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as captured:  # rich itself would end the process at a closed pipe
        console.print(table)
    print(captured.get(), end="")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
