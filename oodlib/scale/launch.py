"""Training in several processes: `accelerate launch` runs a function that trains, and reports what went wrong.

`machine.launch` names a configuration in params/accelerate/ (ddp, fsdp2) or the path of one. Every process calls the
same function; checkpoints are written once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from oodlib.config import PACKAGE, PARAMS, Config
from oodlib.io import read_json, write_json
from oodlib.models.loading import quiet
from oodlib.run import Run
from oodlib.training.setup import STEP, NoData

CONFIGURATIONS = PARAMS / "accelerate"


def launch(run: Run, function: str, seed: int, **arguments: Any) -> None:
    """Call `function` ("module:name") as function(run, seed, **arguments), in `machine.launch`'s processes.

    ValueError: no such configuration. RuntimeError: a process failed; the message says how. `NoData` stays itself.
    """
    machine = run.config.machine
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(configuration(machine.launch)), "--main_process_port", "0"]
    command += ["--num_processes", str(machine.processes)] if machine.processes else []
    with tempfile.TemporaryDirectory() as folder:
        job, failure = Path(folder) / "job.json", Path(folder) / "failure.json"
        about = {"config": run.config.model_dump(), "folder": str(run.folder), "store": str(run.store)}
        write_json(job, {**about, "function": function, "seed": seed, "arguments": arguments})
        output = _follow([*command, "-m", "oodlib.scale.launch", str(job), str(failure)])
        if output is None:
            return
        if not failure.exists():
            raise RuntimeError("training in several processes failed:\n" + "\n".join(output[-30:]))
        error = read_json(failure)
    if error["type"] == "NoData":
        raise NoData(error["message"])
    raise RuntimeError(f"training failed in process {error['process']}: {error['type']}: {error['message']}")


def _follow(command: list[str]) -> list[str] | None:
    """Run a command with a bar of its steps; None if all went well, else its output, line by line."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "env": environment}
    output = []
    with subprocess.Popen(command, **pipe) as process, tqdm(desc="updates", leave=False) as bar:
        try:
            for line in process.stdout:
                if line.startswith(STEP):
                    step, bar.total = map(int, line.split()[1:3])
                    bar.update(step - bar.n)
                else:
                    output.append(line.rstrip())
        except BaseException:  # what interrupts this process ends the others too
            process.terminate()
            raise
    return output if process.returncode else None


def configuration(name: str) -> Path:
    """The file of accelerate's configuration that `machine.launch` names. ValueError if there is none."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else CONFIGURATIONS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in CONFIGURATIONS.glob("*.yaml")))
        raise ValueError(f"unknown machine.launch {name!r}: allowed are {known}, or the path of a YAML file")
    return path


def main(job: str, failure: str) -> None:
    """What each process runs: the job's function; the first that fails writes the reason into the file `failure`."""
    quiet()
    about = read_json(Path(job))
    run = Run(Config(**about["config"]), Path(about["folder"]), Path(about["store"]))
    try:
        module, _, name = about["function"].partition(":")
        getattr(import_module(module), name)(run, about["seed"], **about["arguments"])
    except Exception as error:
        if not Path(failure).exists():
            rank = int(os.environ.get("RANK", 0))
            write_json(Path(failure), {"type": type(error).__name__, "message": str(error), "process": rank})
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
