"""The command `oodlib`: run a preset from end to end, and read its scorecard."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from oodlib import cli_weights
from oodlib.presets import PARAMS, ROOT, Preset, load_preset, preset_names
from oodlib.runs import Run, write_whole

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Reproduce *RL Fine-Tuning Heals OOD Forgetting in SFT* (arXiv:2509.12235), with controls and intervals.\n\n"
    "Start with `oodlib reproduce`: on a laptop it fine-tunes a small language model, reinforces it, takes its "
    "weights apart, and says which of the paper's claims hold there. Then `oodlib scorecard outputs/tiny`.\n\n"
    "The same stages are notebooks in notebooks/, to be opened in JupyterLab or run with papermill.",
)
console = Console()
NOTEBOOKS = ROOT / "notebooks"
STAGE_NOTEBOOKS = "0[0-4]_*.ipynb"  # those of one run; 05 and 06 read the campaign


@app.command()
def reproduce(
    preset: Annotated[str, typer.Option(help="A preset in params/, or the path of a YAML file like those.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: outputs/PRESET.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw. Default: the preset's.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one parameter, as NAME=VALUE, e.g. sft_steps=300. May be repeated."),
    ] = None,
) -> None:
    """Run the notebooks 00 to 04 with a preset, then print the scorecard and leave a report beside the results.

    What is already done in the folder, with the same parameters, seed and code, is loaded; what was cut off
    goes on from its last checkpoint. So after an interruption just give the same command again.
    """
    from oodlib.provenance import Meter

    with _short_errors():
        values = {"out": str(out) if out else None, "seed": seed, **_assignments(set_ or [])}
        chosen = load_preset(preset, **{**values, "reference": False})
        run = Run(chosen)
        console.print(f"[bold]{chosen.preset}[/bold], seed {', '.join(map(str, chosen.seeds))} -> {run.folder}")
        with run.lock(".reproduce.lock"), Meter() as meter, _Bar(run) as bar:
            for notebook in sorted(NOTEBOOKS.glob(STAGE_NOTEBOOKS)):
                _execute(notebook, run, preset)
        if bar.left_at_start:
            run.note("all", meter.wall_s, meter.peak_mib)
        console.print(f"done in {meter.wall_s / 60:.1f} minutes, at most {meter.peak_mib / 1024:.1f} GiB of memory")
        _print_scorecard(run.folder)
        _report(run.folder)


@app.command()
def plan(
    preset: Annotated[
        str, typer.Option("--preset", "-f", help="A preset in params/, or the path of a YAML file.")
    ] = "tiny",
    gpus: Annotated[int | None, typer.Option(help="GPUs; 0 plans for the CPU. Default: those of this machine.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB a GPU. Default: as this machine's first.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="TFLOP/s of one GPU at matrix products (A100: 312). Default: measured here.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change one parameter, as NAME=VALUE.")] = None,
) -> None:
    """Say what a preset will take, before anything runs: memory, disk, time; and what to change if it does not fit.

    Exit status 1 where it does not fit.
    """
    from oodlib.cli_plan import show
    from oodlib.planning import device_here

    with _short_errors():
        if rate is not None and rate <= 0:
            raise ValueError(f"--rate {rate}: must be more than 0 TFLOP/s")
        chosen = load_preset(preset, **_assignments(set_ or []))
        fits = show(console, chosen, device_here(gpus, gpu_memory), rate and rate * 1e12)
    if not fits:
        raise typer.Exit(1)


@app.command()
def campaign(
    phase: Annotated[str, typer.Argument(help="A phase of the plan: explore, confirm, remedies.")],
    plan: Annotated[Path, typer.Option(help="The plan's file.")] = PARAMS / "plans" / "campaign.yaml",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = ROOT / "outputs" / "campaign",
    at_once: Annotated[int, typer.Option(help="Seeds of a regime that run together.")] = 2,
) -> None:
    """Run what is left of a phase of the campaign that notebooks 05 and 06 read.

    What is in outputs/campaign/measurements.csv with the plan's parameters is done. After an interruption give the
    same command again.
    """
    from oodlib.campaign import Campaign, Plan
    from oodlib.provenance import Meter

    with _short_errors():
        mine = Campaign(Plan(plan), out)
        left = len(mine.left(phase))
        console.print(f"{phase}: {left} of {sum(1 for _ in mine.plan.cells(phase))} cells left -> {mine.folder}")
        with Run(load_preset(mine.plan.like), mine.folder).lock(), Meter() as meter:
            for cells, rest in mine.run(phase, at_once):
                minutes = meter.wall_s / 60
                names = ", ".join(cell.name for cell in cells)
                hence = minutes / (left - rest) * rest
                console.print(f"  {names} done after {minutes:.0f} min; {rest} cells left, about {hence:.0f} min")


@app.command()
@wraps(cli_weights.compare)
def compare(*args, **options) -> None:
    with _short_errors():
        cli_weights.compare(*args, **options)


@app.command()
@wraps(cli_weights.restore)
def restore(*args, **options) -> None:
    with _short_errors():
        cli_weights.restore(*args, **options)


@app.command()
def scorecard(
    folder: Annotated[Path, typer.Argument(help="A run's folder, e.g. outputs/tiny.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Print which claims hold in a finished run, from its measurements alone."""
    with _short_errors():
        _print_scorecard(folder, markdown)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's or the campaign's folder, e.g. outputs/tiny.")],
    out: Annotated[Path | None, typer.Option(help="The file. Default: FOLDER/report.html.")] = None,
) -> None:
    """Write one web page of a finished run, to send around: scorecard, figures and text, method, provenance.

    All of it lies in the one file; the page shows no code, runs no script and fetches nothing.
    """
    with _short_errors():
        _report(folder, out)


@app.command()
def presets() -> None:
    """List the presets in params/."""
    for name in preset_names():
        chosen = load_preset(name)
        console.print(
            f"[bold]{name}[/bold]: model {chosen.model}, {chosen.n_seeds} seed(s), {chosen.sft_steps} SFT steps, "
            f"RL from {len(chosen.rl_from)} checkpoints"
        )


def _execute(notebook: Path, run: Run, preset: str) -> None:
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    start, target = time.monotonic(), run.folder / "notebooks" / notebook.name
    source = str(Path(preset).resolve()) if preset.endswith((".yaml", ".yml")) else preset
    parameters = {**run.preset.model_dump(), "preset": source, "out": str(run.folder)}

    def execute(path: Path) -> None:
        try:
            papermill.execute_notebook(
                notebook, path, parameters, progress_bar=False, cwd=str(NOTEBOOKS), kernel_name="python3"
            )
        except papermill.PapermillExecutionError:
            shutil.copy(path, target.with_suffix(".failed.ipynb"))  # for its traceback
            raise
        finally:
            if path.exists():
                _strip(path)

    try:
        write_whole(target, execute)
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{notebook.name}, cell {error.cell_index}: {error.ename}: {error.evalue}") from None
    target.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    console.print(f"  {notebook.name}: {time.monotonic() - start:.0f} s")


def _strip(path: Path) -> None:
    """Take this machine's paths out of an executed notebook."""
    notebook = json.loads(path.read_text())
    about = notebook["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "parameters"):  # the parameters stand in their cell
        about.pop(key, None)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), "."))


class _Bar:
    """A bar over the work of all stages, from the jobs that are done; the unit is a sequence trained on."""

    def __init__(self, run: Run):
        from oodlib.stages import STAGES, waves

        self.run = run
        self.jobs = [job for stage in STAGES for wave in waves(run.preset, stage) for job in wave]
        self.total = sum(job.cost for job in self.jobs)
        self.left_at_start = any(not run.done(job) for job in self.jobs)
        self.stop = threading.Event()

    def __enter__(self) -> _Bar:
        columns = (
            BarColumn(),
            "{task.percentage:>3.0f} %",
            TimeElapsedColumn(),
            "left",
            TimeRemainingColumn(),
        )
        self.bar = Progress(TextColumn("{task.description}"), *columns, console=console)
        self.bar.start()
        self.task = self.bar.add_task("starting", total=self.total)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.bar.stop()

    def _watch(self) -> None:
        done: set[str] = set()
        while True:
            done |= {job.name for job in self.jobs if job.name not in done and self.run.done(job)}
            left = [job for job in self.jobs if job.name not in done]
            finished = sum(job.cost for job in self.jobs if job.name in done)
            self.bar.update(self.task, completed=finished, description=left[0].stage if left else "reading")
            if self.stop.wait(1.0):
                return


def _assignments(pairs: list[str]) -> dict[str, object]:
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in Preset.model_fields:
            raise ValueError(f"--set {pair!r}: write NAME=VALUE with one of {', '.join(Preset.model_fields)}")
        values[name] = yaml.safe_load(value)
    return values


def _print_scorecard(folder: Path, markdown: bool = False) -> None:
    from oodlib.claims import as_markdown, in_unit, interval
    from oodlib.claims import scorecard as judge
    from oodlib.evidence import Evidence
    from oodlib.plotting import VERDICT_COLOURS

    if not (folder / "hands.parquet").exists():
        raise ValueError(f"{folder} holds no finished run (no hands.parquet)")
    evidence = Evidence.of(Run(load_preset("tiny"), folder))
    claims = judge(evidence)
    if markdown:
        print(as_markdown(claims), end="")
        return
    table = Table(title=f"Scorecard of {folder}", title_justify="left", show_lines=True)
    for head in ("", "claim and what was measured", "estimate [95 %]", "paper", "verdict"):
        table.add_column(head)
    for c in claims:
        verdict = f"[{VERDICT_COLOURS[c.verdict]}]{c.verdict}[/]"
        measures = f"{c.title}\n[dim]{escape(c.quantity)}[/dim]"
        table.add_row(c.claim, measures, interval(c), in_unit(c.unit, c.paper), verdict)
    console.print(table)
    for c in claims:
        console.print(f"{c.claim}: {c.sentence}", markup=False, highlight=False)
    if len(evidence.seeds) == 1:
        console.print("One seed: intervals are over hands (C9: weight matrices), not over training runs.")


def _report(folder: Path, out: Path | None = None) -> None:
    from oodlib.report import write_report

    path = write_report(folder, out)
    console.print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, highlight=False)


class _short_errors:
    """An expected error becomes one line and exit status 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (ValueError, RuntimeError, OSError)):
            Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(2)


if __name__ == "__main__":
    app()
