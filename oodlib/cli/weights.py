"""The commands about anybody's models: `oodlib select`, `oodlib compare` and `oodlib restore`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.progress import Progress, track
from rich.text import Text

from oodlib.cli.output import console, naming, plain, print_table, say

CHECKPOINT = "a folder of safetensors, a PEFT adapter folder, a .gguf file, ORG/NAME[@REVISION] on the hub, or `tiny`"
COUNT = "directions, a number or a share such as 20%"
COLUMNS = {
    "angle": ("turned by", "{:.2f}°"),
    "noise_angle": ("noise: by", "{:.2f}°"),
    "above_noise": ("more than noise", "{:.0%}"),
    "gap_supports": ("gap supports", "{:.0%}"),
    "value_change": ("values changed by", "{:.2%}"),
    "noise_value_change": ("noise changes them by", "{:.2%}"),
}
Modules = Annotated[
    list[str] | None, typer.Option(help="Pattern of modules, such as q_proj or 'mlp.*'. Repeatable. Default: all.")
]
Layers = Annotated[str | None, typer.Option(help="Layers, such as 0-11,20. Default: all.")]
AdapterBase = Annotated[
    str | None, typer.Option("--base", help="Where the base of an adapter lies, if not where the adapter says.")
]


def select(
    what: Annotated[
        list[Path],
        typer.Argument(help="A run's folder; or checkpoints named NAME-STEP, or the folder that holds them."),
    ],
    base: Annotated[
        str | None, typer.Option(help=f"The model that was fine-tuned, for rules that read weights: {CHECKPOINT}.")
    ] = None,
) -> None:
    """Say which checkpoint of a fine-tuning to keep, by rules that need no OOD test.

    Each rule takes what there is: steps, the evaluations in trainer_state.json, and with --base the weights. Beside
    each stands how much OOD accuracy it lost in this project's own measurements.
    """
    from oodlib.analysis import selection
    from oodlib.results import Results

    columns: dict[str, dict[str, str]] = {}
    if len(what) == 1 and (what[0] / "measurements.csv").exists():
        if base is not None:
            raise ValueError("--base goes with checkpoints: of a run made here the weights were measured")
        with naming(what[0]):
            run = Results(what[0])
            paths = selection.paths(run.table("measurements"), run.splits)
            chosen = {seed: selection.choices(path) for (_, seed), path in paths.items()}
            lost = selection.by_rule(selection.regrets(paths))
        columns["here"] = {rule: f"{100 * estimate.value:.1f}" for rule, estimate in lost.items()}
    else:
        remarks: dict[str, dict[str, str]] = {}
        chosen = {0: selection.choices(selection.training_path(selection.checkpoints(what), base, remarks))}
        for checkpoint, said in remarks.items():
            _remark(checkpoint, said)
    if not chosen:
        raise ValueError(f"{what[0]}: nothing of SFT is measured there")
    known = selection.measured_here()
    for name, estimates in known.items():
        columns[name] = {rule: f"{100 * e.value:.1f} ± {50 * (e.high - e.low):.1f}" for rule, e in estimates.items()}
    order = {rule: i for i, rule in enumerate(known.get("tiny-seeds", {}))}
    rules = sorted({rule for steps in chosen.values() for rule in steps}, key=lambda rule: (order.get(rule, 99), rule))
    kept = {rule: ", ".join(str(steps.get(rule, "none")) for steps in chosen.values()) for rule in rules}
    which = f"step (seed {', '.join(map(str, chosen))})" if "here" in columns else "step"
    steps = [{"rule": rule, which: kept[rule]} for rule in rules]
    losses = [{name: lost.get(rule, "–") for name, lost in columns.items()} for rule in rules]
    print_table(pd.DataFrame([a | b for a, b in zip(steps, losses, strict=True)]))
    say(
        f"{', '.join(columns)}: points of OOD accuracy below the peak of the checkpoint that the rule chose there, "
        "± 95 % over seeds; 0 is the best possible, – not measured"
    )


def compare(
    base: Annotated[str, typer.Argument(help=f"The first checkpoint: {CHECKPOINT}.")],
    checkpoints: Annotated[list[str], typer.Argument(help="The checkpoints to compare with it.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, arrays and figures.")],
    modules: Modules = None,
    layers: Layers = None,
    k: Annotated[list[str] | None, typer.Option(help=f"Leading {COUNT}; repeatable. Default: 5%, 20%, 50%.")] = None,
    null: Annotated[bool, typer.Option(help="Also measure what noise of the same norm would turn.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of that noise.")] = 0,
    adapter_base: AdapterBase = None,
) -> None:
    """What training did to singular values and singular vectors, matrix by matrix.

    Results are written as they come; after an interruption give the same command again. What cannot be compared is left
    out and named, with the reason.
    """
    from oodlib.io import write_figure
    from oodlib.plots import comparison as figures
    from oodlib.plots.style import style
    from oodlib.spectral.comparison import DEFAULT_K, Comparing

    null_seed = seed if null else None
    settings = (modules or None, _layers(layers), k or DEFAULT_K, null_seed, adapter_base)
    comparing = Comparing(base, checkpoints, out, *settings)
    for _ in track(comparing.run(), "comparing", len(comparing.todo()), console=console):
        pass  # each matrix is written as it comes
    for target in comparing.targets:
        _remark(target.name, target.remarks)
    style()
    tables = {target.name: table for target in comparing.targets if len(table := target.table())}
    if not tables:
        raise ValueError("no matrix could be analysed: see the remarks above")
    write_figure(out, figures.where(tables), "where")
    write_figure(out, figures.spectra(out, tables), "spectra")
    rows = [row for name, table in tables.items() if (row := _summarise(name, table))]
    if rows:
        print_table(pd.DataFrame(rows))
        console.print("?: the change is larger than the spectrum's gap at k; a few swapped directions may do that")
    say(f"tables, arrays and figures are in {out}")


def restore(
    recipient: Annotated[str, typer.Argument(help="The model to edit, a folder of safetensors.")],
    donor: Annotated[str, typer.Argument(help=f"Where the singular vectors or values come from: {CHECKPOINT}.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the edited model (not for a dry run).")] = None,
    part: Annotated[str, typer.Option(help="vectors or values; or a null edit: random, signs, noise.")] = "vectors",
    k_top: Annotated[str | None, typer.Option(help=f"Leading {COUNT}. Default: all.")] = None,
    k_tail: Annotated[str | None, typer.Option(help=f"Trailing {COUNT}.")] = None,
    modules: Modules = None,
    layers: Layers = None,
    adapter_base: AdapterBase = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False,
) -> None:
    """Put a donor's singular vectors (or values) into a recipient, and write the edited model.

    The result loads with from_pretrained and keeps the recipient's dtype, tokenizer and configuration. As in the
    paper, new vectors are not made orthogonal to those that stay, so a partial edit also shifts singular values and may
    turn the leading directions away from the donor's: look at the result with `oodlib compare`.
    """
    from oodlib.spectral.surgery import Edit, ModelEdit, ends

    if out is None and not dry_run:
        raise ValueError("--out is missing: a folder for the edited model (or --dry-run)")
    edit = Edit(part, k_top, k_tail or 0, _layers(layers))
    job = ModelEdit(recipient, donor, edit, modules or None, adapter_base)
    _remark(f"{donor} -> {recipient}", job.remarks)
    shapes = {name: pair.shape for name, pair in job.pairs.items()}
    if dry_run:
        rows = [(name, "x".join(map(str, s)), *ends(edit.top, edit.tail, min(s))) for name, s in shapes.items()]
        print_table(pd.DataFrame(rows, columns=["matrix", "shape", "leading", "trailing"]))
        every = len(job.recipient.shapes)
        console.print(f"{len(shapes)} of {every} tensors would be rewritten; nothing was written")
        return
    with Progress(console=console) as bar:
        task = bar.add_task("restoring", total=len(shapes))
        moved = job.write(out, lambda: bar.advance(task))
    changes = [change for change in moved if change > 0]
    finite = [change for change in changes if math.isfinite(change)]  # a zero matrix has no norm
    mean = sum(finite) / max(1, len(finite))
    edited = f"{len(moved)} matrices edited; {len(changes)} of them changed"
    say(f"{edited}, by {mean:.1%} of their norm on average -> {out}")


def _remark(checkpoint: str, remarks: dict[str, str]) -> None:
    for name, reason in remarks.items():
        say(Text.assemble((plain(checkpoint), "yellow"), plain(f": {name}: {reason}")))


def _summarise(name: str, table: pd.DataFrame) -> dict[str, str] | None:
    """A row for the terminal: means over the matrices that changed, at the middle k; says what turned most there.

    None where no matrix changed.
    """
    from oodlib.spectral.comparison import summary

    short = summary(table)
    ranks = short.groupby("matrix")["k"]
    middle = short[ranks.rank(method="first") == (ranks.transform("count") + 1) // 2]
    changed = middle[middle["change_ratio"] > 0]
    if same := len(middle) - len(changed):
        rest = "; what follows is of the others" if len(changed) else ""
        say(f"{name}: {same} of {len(middle)} matrices are unchanged{rest}")
    if changed.empty:
        return None
    row = {"checkpoint": name, "leading": f"{middle['share'].median():.0%}"}
    for column, (head, form) in COLUMNS.items():
        row[head] = form.format(changed[column].mean()) if changed[column].notna().all() else ""
    for most in changed.nlargest(3, "angle").itertuples():
        sure = "" if most.gap_supports else " ?"
        say(f"{name}: turned most: {most.matrix}, {most.angle:.1f}°{sure}")
    return row


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    ranges = [re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part) for part in text.split(",")]
    if not all(ranges):
        raise ValueError(f"layers {text!r}: write numbers and ranges up to 9999, such as 0-11,20")
    ends = [(int(one[1]), int(one[2] or one[1])) for one in ranges]
    return tuple(n for first, last in ends for n in range(first, last + 1))
