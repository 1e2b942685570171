"""Running the notebooks of a run with papermill, behind a bar; and copying them out."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import papermill
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from oodlib.cli.output import console, say
from oodlib.config import SHARE
from oodlib.io import write_whole
from oodlib.run import STAGES, Job, Run
from oodlib.stages import waves

NOTEBOOKS = SHARE / "notebooks"
STAGE_NOTEBOOKS = "0[0-4]_*.ipynb"  # those of one run; 05 and 06 read the sweep


def run_notebooks(run: Run, preset: str) -> bool:
    """Execute the notebooks of a run into its folder; whether there was anything left to measure."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with _JobsBar(run) as bar:
        unfinished = bool(bar.left())
        for notebook in sorted(NOTEBOOKS.glob(STAGE_NOTEBOOKS)):
            start = time.monotonic()
            _execute(notebook, run, preset)
            say(f"  {notebook.name}: {time.monotonic() - start:.0f} s")
    return unfinished


def _execute(notebook: Path, run: Run, preset: str) -> None:
    target = run.folder / "notebooks" / notebook.name
    source = str(Path(preset).resolve()) if preset.endswith((".yaml", ".yml")) else preset
    parameters = {**run.config.model_dump(), "preset": source, "out": str(run.folder)}

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


def _strip(path: Path) -> None:
    """Take this machine's paths out of an executed notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    about = notebook["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "parameters"):  # the parameters stand in their cell
        about.pop(key, None)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text.replace(f"{SHARE}{os.sep}", "").replace(str(SHARE), "."), encoding="utf-8")


def copy_notebooks(folder: Path) -> int:
    """Copy notebooks, exercises and solutions to `folder`; how many. ValueError where something is there already."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already: choose another folder")
    hidden = shutil.ignore_patterns(".*", "__pycache__")
    write_whole(folder, lambda path: shutil.copytree(NOTEBOOKS, path, ignore=hidden))
    return len(list(folder.rglob("*.ipynb")))


class _JobsBar(Progress):
    """A bar of the jobs of all stages; whenever it is drawn it counts those that are done."""

    def __init__(self, run: Run):
        self.run, self.jobs = run, [job for stage in STAGES for wave in waves(run.config, stage) for job in wave]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), "jobs", TimeElapsedColumn())
        super().__init__(*columns, console=console, refresh_per_second=1)
        self.add_task("starting", total=len(self.jobs))

    def left(self) -> list[Job]:
        return [job for job in self.jobs if not self.run.done(job)]

    def get_renderables(self) -> Iterable[RenderableType]:
        left = self.left()
        for task in self.task_ids:  # none yet while the bar is made
            self.update(task, completed=len(self.jobs) - len(left), description=left[0].stage if left else "reading")
        return super().get_renderables()
