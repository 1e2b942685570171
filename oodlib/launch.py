"""Training in several processes: a function that trains is run by `accelerate launch`, and what went wrong is said.

`machine.launch` names a configuration in params/accelerate/ (ddp, fsdp2) or the path of one; without it the function
is simply called. Every process calls the same function; checkpoints are written once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from oodlib.presets import PARAMS, Preset
from oodlib.runs import Run, write_whole

CONFIGURATIONS = PARAMS / "accelerate"
STEP = "oodlib-step"  # the first word of a line in which the first process says how far it is


def launch(run: Run, function: str, seed: int, **arguments: Any) -> None:
    """Call `function` ("module:name") as function(run, seed, **arguments), in `machine.launch`'s processes if set.

    ValueError: no such configuration. RuntimeError: a process failed; the message says how. `arms.NoData` comes
    through as itself.
    """
    machine = run.preset.machine
    if not machine.launch:
        return _function(function)(run, seed, **arguments)
    from oodlib.arms import NoData

    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(configuration(machine.launch)), "--main_process_port", "0"]
    command += ["--num_processes", str(machine.processes)] if machine.processes else []
    with tempfile.TemporaryDirectory() as folder:
        job, failure = Path(folder) / "job.json", Path(folder) / "failure.json"
        about = {"preset": run.preset.model_dump(), "folder": str(run.folder), "store": str(run.store)}
        job.write_text(json.dumps({**about, "function": function, "seed": seed, "arguments": arguments}))
        said = _follow([*command, "-m", "oodlib.launch", str(job), str(failure)])
        if said is None:
            return None
        if not failure.exists():
            raise RuntimeError("training in several processes failed:\n" + "\n".join(said[-30:]))
        found = json.loads(failure.read_text())
    if found["kind"] == "NoData":
        raise NoData(found["message"])
    raise RuntimeError(f"training failed in process {found['process']}: {found['kind']}: {found['message']}")


def _follow(command: list[str]) -> list[str] | None:
    """Run a command with a bar of its steps; None if all went well, else what it said."""
    import torch

    paths = [str(PARAMS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    plain = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    said = []
    with subprocess.Popen(command, **plain) as process, tqdm(desc="updates", leave=False) as bar:
        try:
            for line in process.stdout:
                if line.startswith(STEP):
                    step, bar.total = map(int, line.split()[1:3])
                    bar.update(step - bar.n)
                else:
                    said.append(line.rstrip())
        except BaseException:  # what interrupts this process ends the others too
            process.terminate()
            raise
    return said if process.returncode else None


def configuration(name: str) -> Path:
    """The file of accelerate's configuration that `machine.launch` names. ValueError if there is none."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else CONFIGURATIONS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in CONFIGURATIONS.glob("*.yaml")))
        raise ValueError(f"unknown machine.launch {name!r}: allowed are {known}, or the path of a YAML file")
    return path


def _function(name: str) -> Callable[..., None]:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def main(job: str, failure: str) -> None:
    """What each process runs: the job's function; the first that fails says why in the file `failure`."""
    from oodlib.stages import quiet

    quiet()
    about = json.loads(Path(job).read_text())
    run = Run(Preset(**about["preset"]), Path(about["folder"]), Path(about["store"]))
    try:
        _function(about["function"])(run, about["seed"], **about["arguments"])
    except Exception as error:
        if not Path(failure).exists():
            found = {"kind": type(error).__name__, "message": str(error), "process": int(os.environ.get("RANK", 0))}
            write_whole(Path(failure), lambda path: path.write_text(json.dumps(found)))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
