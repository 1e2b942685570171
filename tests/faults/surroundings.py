"""The row `surroundings`: each command in a place that is unlike a developer's machine. It works, or says one line."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import small

from oodlib.config import CHECKOUT

COMMANDS = [
    ("presets",),
    ("presets", "{}/small.yaml"),
    ("plan", "-f", "smoke", "--gpus", "0", "--rate", "1"),
    ("scorecard", "{}/run"),
    ("report", "{}/run"),
    ("notebooks", "{}/copies"),
    ("sweep", "explore", "--plan", "{}/plan.yaml", "--out", "{}/sweep"),
    ("compare", "tiny", "reader", "--out", "{}/compared", "--layers", "0", "--modules", "q_proj"),
    ("restore", "tiny", "reader", "--dry-run", "--layers", "0"),
    ("reproduce", "--preset", "hub:NO/MODEL", "--out", "{}/out"),
    ("reproduce", "--preset", "smoke", "--set", "model.source=hub:NO/MODEL@0000000", "--out", "{}/out"),
]
PLACES = ("no network", "HOME not writable", "another working directory", "locale C", "spaces and Cyrillic", "all")


def surroundings(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """Every command in every place, one after another."""
    words, place = COMMANDS[number % len(COMMANDS)], PLACES[::-1][number // len(COMMANDS) % len(PLACES)]
    every = place == "all"
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        home = Path(folder) / ("папка с пробелом" if every or place == "spaces and Cyrillic" else "plain")
        home.mkdir()
        small.preset(home)
        (home / "run").mkdir()
        for file in ("manifest.json", "scorecard.json", "notebooks", *(f"{t}.parquet" for t in ("hands", "rollouts"))):
            source = CHECKOUT / "outputs/tiny" / file
            (shutil.copytree if source.is_dir() else shutil.copy)(source, home / "run" / file)
        for file in ("measurements.csv", "rotation.parquet"):
            shutil.copy(CHECKOUT / "outputs/tiny" / file, home / "run")
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200", "HF_HUB_ETAG_TIMEOUT": "3"}
        if every or place == "no network":
            environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        if every or place == "HOME not writable":
            environment |= dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc/1/nowhere")
            environment.pop("MPLCONFIGDIR", None)
        if every or place == "locale C":
            environment |= {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [sys.executable, "-m", "oodlib.cli", *(word.format(home) for word in words)],
            cwd="/" if every or place == "another working directory" else home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
    said = done.stdout.decode(errors="replace")
    return f"{' '.join(words)}, {place}", small.Ended(done.returncode, said).fault((0, 1, 2))
