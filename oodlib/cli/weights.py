"""The commands about weights of anybody's models: `oodlib compare` and `oodlib restore`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

CHECKPOINT = "a folder of safetensors, a PEFT adapter folder, a .gguf file, ORG/NAME[@REVISION] on the hub, or `tiny`"
console = Console()
Modules = Annotated[
    list[str] | None, typer.Option(help="Glob pattern of module names, such as q_proj or 'mlp.*'. May be repeated.")
]
Layers = Annotated[str | None, typer.Option(help="Layers, such as 0-11,20. Default: all.")]


def compare(
    base: Annotated[str, typer.Argument(help=f"The first checkpoint: {CHECKPOINT}.")],
    checkpoints: Annotated[list[str], typer.Argument(help="The checkpoints to compare with it.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, arrays and figures.")],
    modules: Modules = None,
    layers: Layers = None,
    k: Annotated[
        list[str] | None,
        typer.Option(help="Leading directions: a number, or a share. May be repeated. Default: 5%, 20%, 50%."),
    ] = None,
    null: Annotated[bool, typer.Option(help="Also measure what noise of the same norm would turn.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of that noise.")] = 0,
) -> None:
    """What training did to singular values and singular vectors, matrix by matrix.

    Results are written as they come; after an interruption give the same command again. What cannot be compared is left
    out and named, with the reason.
    """
    from oodlib.io import write_figure
    from oodlib.models.names import MODULES
    from oodlib.plots import comparison as figures
    from oodlib.plots.style import style
    from oodlib.spectral.comparison import DEFAULT_K, Comparing, Settings

    settings = Settings(tuple(modules or MODULES), _layers(layers), tuple(k or DEFAULT_K), seed if null else None)
    comparing = Comparing(base, checkpoints, out, settings)
    for target in comparing.targets:
        _remark(target.name, target.remarks)
    before = {target.name: set(target.remarks) for target in comparing.targets}
    todo = comparing.todo()
    _show(comparing.run(), [pair.shape for pair, _ in todo], "comparing")
    for target in comparing.targets:
        _remark(target.name, {n: r for n, r in target.remarks.items() if n not in before[target.name]})
    style()
    tables = {target.name: table for target in comparing.targets if len(table := comparing.table(target))}
    if not tables:
        raise ValueError("no matrix could be analysed: see the remarks above")
    for name, figure in (
        ("where", figures.where(tables)),
        ("angles", figures.angle_spectra(out, tables)),
        ("values", figures.value_spectra(out, tables)),
    ):
        write_figure(out, figure, name)
    _summary(tables)
    console.print(f"tables, arrays and figures are in {out}")


def restore(
    recipient: Annotated[str, typer.Argument(help="The model to edit, a folder of safetensors.")],
    donor: Annotated[str, typer.Argument(help=f"Where the singular vectors or values come from: {CHECKPOINT}.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the edited model (not for a dry run).")] = None,
    part: Annotated[str, typer.Option(help="What to restore: vectors or values.")] = "vectors",
    k_top: Annotated[str | None, typer.Option(help="Leading directions, a number or a share. Default: all.")] = None,
    k_tail: Annotated[str | None, typer.Option(help="Trailing directions.")] = None,
    modules: Modules = None,
    layers: Layers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False,
) -> None:
    """Put a donor's singular vectors (or values) into a recipient, and write the edited model.

    The result loads with from_pretrained and keeps the recipient's dtype, tokenizer and configuration. As in the
    paper, new vectors are not made orthogonal to those that stay, so a partial edit also shifts singular values and may
    turn the leading directions away from the donor's: look at the result with `oodlib compare`.
    """
    from oodlib.models.names import MODULES
    from oodlib.spectral.model_surgery import Restoration

    if out is None and not dry_run:
        raise ValueError("--out is missing: a folder for the edited model (or --dry-run)")
    job = Restoration(recipient, donor, out, part, k_top, k_tail, tuple(modules or MODULES), _layers(layers))
    _remark(str(donor), job.remarks)
    if dry_run:
        table = Table("matrix", "shape", "leading", "trailing", title=f"{part} to be restored")
        for pair in job.pairs.values():
            table.add_row(pair.name, "x".join(map(str, pair.shape)), *map(str, job.counts(pair)))
        console.print(table)
        same = sum(job.equal(pair) for pair in job.pairs.values())
        console.print(
            f"{len(job.pairs)} of {len(job.own.shapes)} tensors would be rewritten"
            + (f" ({same} of them are equal in the donor)" if same else "")
            + "; nothing was written"
        )
        return
    moved = _show(job.run(), [pair.shape for pair in job.pairs.values()], "restoring")
    changes = [change for _, change in moved if change > 0]
    mean = sum(changes) / max(1, len(changes))
    console.print(
        f"{len(moved)} matrices edited; {len(changes)} of them changed, by {mean:.1%} of their norm on average -> {out}"
    )


def _remark(checkpoint: str, remarks: dict[str, str]) -> None:
    for name, reason in remarks.items():
        console.print(f"[yellow]{escape(checkpoint)}[/yellow]: {escape(f'{name}: {reason}')}", highlight=False)


def _show(work: Iterator, shapes: list[tuple[int, int]], what: str) -> list:
    """Do the work behind a bar; time left is estimated from what the matrices' decompositions cost."""
    costs = [min(shape) ** 2 * (max(shape) + 4 * min(shape)) for shape in shapes]
    columns = (TextColumn(what), BarColumn(), "{task.fields[done]} of {task.fields[all]} matrices", TimeElapsedColumn())
    results = []
    with Progress(*columns, "left", TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=sum(costs) or 1, completed=0 if costs else 1, done=0, all=len(costs))
        for cost, result in zip([*costs, 0], work, strict=False):
            results.append(result)
            bar.update(task, advance=cost, done=len(results))
    return results


def _summary(tables) -> None:
    """The middle k of each checkpoint, and the matrices that turned most there."""
    from oodlib.spectral.comparison import summary

    table = Table(
        "checkpoint",
        "leading",
        "turned by",
        "noise: by",
        "more than noise",
        "gap supports",
        "values changed by",
        "noise: by",
    )
    for name, rows in tables.items():
        short = summary(rows)
        place = short.groupby("matrix")["k"].rank(method="first")
        mine = short[place == ((short.groupby("matrix")["k"].transform("count") + 1) // 2)]  # the middle k of each
        share = mine["share"].median()
        every, mine = len(mine), mine[mine["change_ratio"] > 0]
        if (n := len(mine)) < every:
            console.print(f"{name}: {every - n} of {every} matrices are unchanged; what follows is of the others")
        if not n:
            continue
        angles = (
            f"{mine[column].mean():.2f}°" if mine[column].notna().any() else "" for column in ("angle", "noise_angle")
        )
        values = (
            f"{mine[c].mean():.2%}" if mine[c].notna().any() else "" for c in ("value_change", "noise_value_change")
        )
        known = mine["above_noise"].notna().all()
        counts = (f"{mine['above_noise'].sum()} of {n}" if known else "", f"{mine['gap_supports'].sum()} of {n}")
        table.add_row(name, f"{share:.0%}", *angles, *counts, *values)
        most = mine.nlargest(3, "angle")
        console.print(
            f"{name}: turned most, leading {share:.0%}: "
            + ", ".join(f"{r.matrix} {r.angle:.1f}°" + ("" if r.gap_supports else "?") for r in most.itertuples()),
            highlight=False,
        )
    if not table.rows:
        return
    console.print(table)
    console.print("?: the gap in the spectrum at k is smaller than the change; a few swapped directions may do that")


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        ends = [[int(n) for n in part.split("-")] for part in text.split(",")]
        if any(len(end) > 2 or end[0] > end[-1] for end in ends):
            raise ValueError
        return tuple(n for end in ends for n in range(end[0], end[-1] + 1))
    except ValueError:
        raise ValueError(f"layers {text!r}: write numbers and ranges, such as 0-11,20") from None
