"""What all commands share: the terminal, tables on it, and errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from oodlib.io import one_line

console = Console(emoji=False)  # hub:x:y is a name
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object, besides: str = "") -> str:
    """Text as it may be shown: characters that steer a terminal as their escapes, but for those `besides`."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in besides else repr(match[0])[1:-1], str(text))


def say(text: str | Text, **options: Any) -> None:
    """Print text as it is: brackets and all else that a name may hold mean nothing."""
    how = {"markup": False, "highlight": False, "soft_wrap": True, **options}  # whole names, that can be copied
    console.print(text if isinstance(text, Text) else plain(text), **how)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with what lies in a folder becomes a ValueError that names the folder."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if str(folder) in str(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{folder}: what lies there does not fit together ({reason})") from error


class ShortErrors(TyperGroup):
    """A group of commands that turns an expected error into one line and exit status 2."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # RuntimeErrors too
            raise
        except (ValueError, RuntimeError, OSError) as error:
            lines = "\n" if isinstance(error, RuntimeError) else ""  # a launched process's last lines
            text = Text.assemble(("error:", "red"), f" {plain(error, lines)}")
            Console(stderr=True, emoji=False).print(text, soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None


def print_table(table: pd.DataFrame, show_lines: bool = False) -> None:
    """Print a data frame without its index; `show_lines` draws lines between rows. A cell may be rich's Text."""
    shown = Table(*(Column(Text(plain(name))) for name in table.columns), show_lines=show_lines)
    for row in table.itertuples(index=False):
        shown.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell, "\n")) for cell in row))
    console.print(shown)
