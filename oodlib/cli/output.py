"""What all commands share: the terminal, tables on it, and errors of one line."""

from __future__ import annotations

from typing import Any

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

console = Console(emoji=False)  # hub:x:y is a name


class ShortErrors(TyperGroup):
    """A group of commands that turns an expected error into one line and exit status 2."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # RuntimeErrors too
            raise
        except (ValueError, RuntimeError, OSError) as error:
            Console(stderr=True, emoji=False).print(
                f"[red]error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False
            )
            raise typer.Exit(2) from None


def print_table(table: pd.DataFrame, show_lines: bool = False) -> None:
    """Print a data frame without its index; `show_lines` draws lines between rows. A cell may be rich's Text."""
    shown = Table(*table.columns, show_lines=show_lines)
    for row in table.itertuples(index=False):
        shown.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    console.print(shown, markup=False)
