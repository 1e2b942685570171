"""The command `oodlib`: run a configuration from end to end, and read what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.text import Text

from oodlib.cli import weights
from oodlib.cli.output import ShortErrors, naming, plain, print_table, say
from oodlib.config import config_names, load_config, read_value

app = typer.Typer(
    cls=ShortErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Reproduce *RL Fine-Tuning Heals OOD Forgetting in SFT* (arXiv:2509.12235), with baselines and intervals.\n\n"
    "Start with `oodlib reproduce`: on a laptop it fine-tunes a small language model, reinforces it, takes its "
    "weights apart, and says which of the paper's claims hold there. Then `oodlib scorecard outputs/tiny`.\n\n"
    "The same stages are notebooks: open them in JupyterLab, or run them with papermill.",
)
Preset = Annotated[str, typer.Option("--preset", "-f", help="A name in params/, or the path of a YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting, such as sft.learning_rate=1e-4. May be repeated."),
]


@app.command()
def reproduce(
    preset: Preset = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: outputs/PRESET.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw. Default: the preset's.")] = None,
    set_: Changes = None,
) -> None:
    """Run the notebooks 00 to 04, then print the scorecard and leave a report beside the results.

    What is already done in the folder, with the same settings and seed, is loaded; what was cut off goes on from its
    last checkpoint. So after an interruption just give the same command again.
    """
    from oodlib.cli.execute import run_notebooks
    from oodlib.provenance import Meter
    from oodlib.run import Run
    from oodlib.stages import check

    changes = {"out": str(out) if out else None, "seed": seed, "machine.reference": False}
    config = load_config(preset, {**changes, **_assignments(set_)})
    check(config)
    run = Run(config)
    seeds = ", ".join(map(str, config.seeds))
    say(Text.assemble((plain(config.preset), "bold"), f", seed {seeds} -> {plain(run.folder)}"))
    with run.lock(".reproduce.lock"), Meter() as meter:
        worked = run_notebooks(run, preset)
    if worked:
        run.note("all", meter.wall_s, meter.peak_mib)
    say(f"done in {meter.wall_s / 60:.1f} minutes, at most {meter.peak_mib / 1024:.1f} GiB of memory")
    _print_scorecard(run.folder)
    _report(run.folder)


@app.command()
def plan(
    preset: Preset = "tiny",
    gpus: Annotated[int | None, typer.Option(help="GPUs; 0 plans for the CPU. Default: those of this machine.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB a GPU. Default: as this machine's first.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="TFLOP/s of one GPU at matrix products (A100: 312). Default: measured here.")
    ] = None,
    set_: Changes = None,
) -> None:
    """Say what a run will take, before anything runs: memory, disk, time, and whether it fits.

    Exit status 1 where it does not fit.
    """
    from oodlib.scale.plan import describe, machine_memory

    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"--rate {rate}: must be more than 0 TFLOP/s, and finite")
    config = load_config(preset, _assignments(set_))
    text, fits = describe(config, *machine_memory(gpus, gpu_memory), rate and rate * 1e12)
    print(plain(text, "\n"))
    if not fits:
        raise typer.Exit(1)


@app.command()
def sweep(
    phase: Annotated[str, typer.Argument(help="A phase of the plan, such as explore or confirm.")],
    plan: Annotated[str, typer.Option(help="A name in params/sweeps, or a plan's file.")] = "sweep",
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: outputs/NAME of the plan.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Seeds of a condition that run together.")] = 2,
) -> None:
    """Run what is left of a phase of a sweep, such as those that notebooks 05 and 06 read.

    What is in the folder's table with the plan's settings is done. After an interruption give the same command again.
    """
    from oodlib.analysis.plan import Plan
    from oodlib.analysis.sweep import Sweep
    from oodlib.provenance import Meter
    from oodlib.run import Run

    study = Sweep(Plan(plan), out)
    left, every = len(study.left(phase)), sum(1 for _ in study.plan.cells(phase))
    if not left:
        say(f"{phase}: all done, {every} of {every} in {study.folder}")
        return
    say(f"{phase}: {left} of {every} left -> {study.folder}")
    with Run(load_config(study.plan.like), study.folder).lock(), Meter() as meter:
        for cells, rest in study.run(phase, at_once):
            minutes = meter.wall_s / 60
            names = ", ".join(cell.name for cell in cells)
            hence = minutes / (left - rest) * rest
            say(f"  {names} done after {minutes:.0f} min; {rest} left, about {hence:.0f} min")
    say(f"{phase}: all done")


app.command()(weights.select)
app.command()(weights.compare)
app.command()(weights.restore)


@app.command()
def scorecard(
    folder: Annotated[Path, typer.Argument(help="A run's folder, e.g. outputs/tiny.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    sweep: Annotated[
        Path | None, typer.Option(help="A sweep's folder, outputs/ and its plan's name: judge C10, C12 and C13 by it.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="With --markdown: another run's folder, for a column; may be repeated.")
    ] = None,
) -> None:
    """Print which claims hold in a finished run, from its measurements alone (C10, C12, C13: from a sweep's)."""
    _print_scorecard(folder, markdown, sweep, beside or [])


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's or the sweep's folder, e.g. outputs/tiny.")],
    out: Annotated[Path | None, typer.Option(help="The file. Default: FOLDER/report.html.")] = None,
) -> None:
    """Write one web page of a finished run, to send around: scorecard, figures and text, method, provenance.

    All of it lies in the one file; the page shows no code, runs no script and fetches nothing.
    """
    _report(folder, out)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs that differ in their seeds alone.")],
    out: Annotated[Path, typer.Option(help="A new folder for the run of all seeds.")],
) -> None:
    """Make one run out of several with other seeds, which need not have shared a machine, and print its scorecard."""
    from oodlib.analysis.claims import as_json
    from oodlib.analysis.claims import scorecard as judge
    from oodlib.analysis.evidence import Evidence
    from oodlib.io import write_text
    from oodlib.merge import merge as merged
    from oodlib.results import Results

    def write_scorecard(folder: Path) -> None:
        write_text(folder / "scorecard.json", as_json(judge(Evidence.of(Results(folder)))))

    merged(runs, out, write_scorecard)
    _print_scorecard(out)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="A name in params/, or the path of a YAML file.")] = None,
) -> None:
    """List the configurations in params/; or of one all settings, with their values and what they mean."""
    if name:
        table = load_config(name).table("task", "model", "eval", "sft", "rl", "rotation", "surgery", "machine")
        print_table(table.reset_index(names="setting"))
        return
    rows = [(c.preset, c.model.source, c.n_seeds, c.sft.steps, c.rl.starts) for c in map(load_config, config_names())]
    print_table(pd.DataFrame(rows, columns=["preset", "model", "seeds", "SFT steps", "RL from steps"]))


@app.command()
def notebooks(folder: Annotated[Path, typer.Argument(help="Where to copy them; must not hold any yet.")]) -> None:
    """Copy the notebooks, exercises and solutions into a folder of your own, to open in JupyterLab."""
    from oodlib.cli.execute import copy_notebooks

    say(f"{copy_notebooks(folder)} notebooks in {folder}: jupyter lab {folder}")


@app.command()
def base(
    folder: Annotated[Path, typer.Argument(help="Where to save it; use it as --set model.source=FOLDER.")],
    task: Annotated[str, typer.Option(help="The task that it learns to read.")] = "general_points",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the problems.")] = 0,
    steps: Annotated[int, typer.Option(help="Of training; 1300 take some twenty minutes of a core.")] = 1300,
    belief: Annotated[
        float, typer.Option(help="Share of problems with the paper's OOD rule. 0.9: tiny; 0: reader.")
    ] = 0.9,
) -> None:
    """Train a tiny base model from nothing, as the shipped ones were."""
    from oodlib.io import write_whole
    from oodlib.models.base import train_base

    if steps < 1 or not 0 <= belief <= 1:
        raise ValueError(f"--steps {steps}, --belief {belief}: at least 1, and a share from 0 to 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already: choose another folder")
    write_whole(folder, lambda path: train_base(path, task, seed, steps, belief))
    say(f"saved in {folder}")


def _assignments(pairs: list[str] | None) -> dict[str, object]:
    changes = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r}: write SECTION.SETTING=VALUE, such as sft.learning_rate=1e-4")
        changes[name.strip()] = read_value(value)
    return changes


def _print_scorecard(
    folder: Path, markdown: bool = False, sweep: Path | None = None, beside: Sequence[Path] = ()
) -> None:
    from oodlib.analysis.claims import TESTS, Claim, as_markdown, by_claim, in_unit, interval
    from oodlib.analysis.claims import scorecard as judge
    from oodlib.analysis.evidence import Evidence
    from oodlib.analysis.plan import Plan
    from oodlib.analysis.stats import SEVERAL
    from oodlib.analysis.sweep import Sweep
    from oodlib.plots.style import VERDICT_COLOURS
    from oodlib.results import Results

    for run in (folder, *beside):
        if not (run / "hands.parquet").exists():
            raise ValueError(f"{run} holds no finished run (no hands.parquet)")
    of_sweep = {}
    if sweep:
        of_sweep = Sweep(Plan(sweep.name), sweep).evidence()
    with naming(folder):
        evidence = Evidence.of(Results(folder), **of_sweep)
        claims = judge(evidence)
    if markdown:
        others = {}
        for run in beside:
            with naming(run):
                others[run.name] = judge(Evidence.of(Results(run)))
        print(plain(as_markdown(claims, others), "\n"), end="")
        return

    def cell(c: Claim) -> Text:
        paper = in_unit(c.unit, c.paper)
        measured = f"\n{interval(c)}{paper and f' (paper {paper})'}\n"
        return Text.assemble((c.verdict, VERDICT_COLOURS[c.verdict]), measured, (c.quantity, "dim"))

    rows = []
    for tests in by_claim(claims):
        first = next(iter(tests.values()))
        cells = (cell(tests[test]) if test in tests else "–" for test in TESTS)
        rows.append((first.claim, Text.assemble(first.title, "\n", (first.version, "dim")), *cells))
    say(f"Scorecard of {folder}")
    print_table(pd.DataFrame(rows, columns=["", "claim", *TESTS.values()]), show_lines=True)
    for c in claims:
        say(f"{c.claim} {TESTS[c.test]}: {c.sentence}")
    if len(evidence.seeds) < SEVERAL:
        say("One seed or two: intervals are over hands (C9: weight matrices), not over training runs.")


def _report(folder: Path, out: Path | None = None) -> None:
    from oodlib.report import write_report

    with naming(folder):
        path = write_report(folder, out)
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
