"""Rows about what a user gives: mutated files of every kind, settings, and command lines."""

import json
import random
import shutil
import tempfile
import traceback
from contextlib import ExitStack, chdir
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import small
import yaml
from typer.testing import CliRunner

from oodlib.config import CHECKOUT, Config, load_config

HOSTILE = [
    b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r", b"\n\n", b"{", b"[", b"]" * 9, b"[" * 5000, b"&a [*a]", b"*a",
    b"!!python/name:os.system ", b"!!timestamp x", b"!!int x", b"2024-99-99", b"'", b'"', b": ", b"\t", b"- ",
    b"null", b"~", b"NaN", b"1e999", b"-1", b"9" * 5000, b"[red]", "Ж".encode("cp1251"), "é".encode("latin-1"),
    "日本".encode("utf-16"), b"\x1b[31m", b"version https://git-lfs.github.com/spec/v1\n",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 10**30, 0.5, -0.5, 1e-4, float("inf"), float("nan"), "", "1e-4", "x", "[red]",
    "\0", "~nobody/x", "/", "a" * 5000, [], [0], [3, 1], [[1]], {}, {"a": 1}, {1: 2}, "tiny", "none", "sft",
    "./x.yaml", "json:dumps", "\ud800", "a\nb",
]  # fmt: skip
FILES = {  # what is mutated, and the command that reads it
    "small.yaml": ("presets", "{}/small.yaml"),
    "other.yaml": ("presets", "{}/small.yaml"),
    "id.jsonl": ("presets", "{}/small.yaml"),
    "plan.yaml": ("sweep", "explore", "--plan", "{}/plan.yaml", "--out", "{}/sweep"),
    "sweep/manifest.json": ("sweep", "explore", "--plan", "{}/plan.yaml", "--out", "{}/sweep"),
    "run/manifest.json": ("scorecard", "{}/run"),
    "run/measurements.csv": ("scorecard", "{}/run"),
    "run/hands.parquet": ("scorecard", "{}/run"),
    "run/rollouts.parquet": ("scorecard", "{}/run"),
    "run/rotation.parquet": ("scorecard", "{}/run"),
    "run/scorecard.json": ("report", "{}/run"),
    "run/notebooks/00.ipynb": ("report", "{}/run"),
}  # fmt: skip


@cache
def original() -> Path:
    """A folder with one good file of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    small.preset(folder)
    (folder / "other.yaml").write_text(small.PRESET)
    (folder / "small.yaml").write_text("like: other.yaml\nseed: 3\n")
    (folder / "run/notebooks").mkdir(parents=True)
    for name in (
        "manifest.json",
        "measurements.csv",
        "hands.parquet",
        "rollouts.parquet",
        "rotation.parquet",
        "scorecard.json",
    ):
        shutil.copy(CHECKOUT / "outputs/tiny" / name, folder / "run")
    frame = pd.read_csv(folder / "run/measurements.csv")  # what a mutation hits should matter
    frame[frame["stage"].isin(["sft", "rl"])].to_csv(folder / "run/measurements.csv", index=False)
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# A notebook", "$x$"]}]
    cells += [{"cell_type": "code", "id": "b", "metadata": {"tags": []}, "source": "1", "execution_count": 1,
               "outputs": [{"output_type": "stream", "name": "stdout", "text": ["1"]}]}]  # fmt: skip
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "run/notebooks/00.ipynb").write_text(json.dumps(notebook))
    (folder / "sweep").mkdir()
    (folder / "sweep/manifest.json").write_text('{"cells": {"main/plain/0": {"mark": "0"}}}')
    return folder


def files(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """A file damaged, cut off, foreign or gone: it is read, or one line names it (or the setting), and status 2."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(list(FILES))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        shutil.copytree(original(), folder, dirs_exist_ok=True)
        what = damage(rng, Path(folder) / name)
        words = [word.format(folder) for word in FILES[name]]
        with worked_off():
            fault = judged(words, Path(name).name)
    return f"{name}, {what}", fault


def damage(rng: random.Random, path: Path) -> str:
    content = path.read_bytes()
    way = rng.choice(["cut", "bits", "put in", "put in", "foreign", "encoding", "empty", "folder", "value", "value"])
    at = rng.randrange(len(content) + 1)
    if way == "cut":
        content = content[:at]
    elif way == "bits":
        content = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 30))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif way == "put in":
        content = content[:at] + rng.choice(HOSTILE) + content[at + rng.choice((0, 0, 1, 9)) :]
    elif way == "foreign":
        content = rng.choice([p for p in original().rglob("*") if p.is_file()]).read_bytes()
    elif way == "encoding" and path.suffix not in (".parquet",):
        content = content.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"]))
    elif way == "folder":
        path.unlink()
        path.mkdir()
        return way
    elif way == "value" and path.suffix in (".json", ".ipynb", ".yaml"):
        read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
        content = write(replaced(rng, read(content))).encode(errors="surrogatepass")
    else:
        content = b""
    path.write_bytes(content)
    return way


def replaced(rng: random.Random, value: object) -> object:
    """The value with something in it exchanged, taken out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: replaced(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], replaced(rng, value[at]), *value[at + rng.randrange(2) :]]
    return rng.choice(VALUES)


def settings(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """A preset or --set with random values: what a plain reading of it says, or refused by name in one line."""
    rng = random.Random(f"{seed} {number}")
    names = [f"{s}.{n}" for s, f in Config.model_fields.items() for n in getattr(f.annotation, "model_fields", ())]
    chosen = rng.sample(names, rng.choice((1, 1, 2, 3)))
    changes = {name: rng.choice(VALUES) for name in chosen}
    if rng.random() < 0.2:
        changes[rng.choice(["sft", "modle", "", ".", "sft.", "sft.step", "[b]", "seed", "n_seeds", "like"])] = (
            rng.choice(VALUES)
        )
    try:
        config = load_config("smoke", changes)
    except ValueError as error:
        named = "is no setting" in str(error) or any(
            part in str(error) for name in changes for part in (name, name.split(".")[-1]) if part
        )
        return repr(changes), None if named and "\n" not in str(error) else f"not by name, or not one line: {error}"
    except Exception as error:
        return repr(changes), f"{type(error).__name__}: {error}"
    found = config.model_dump()
    for name, value in changes.items():
        section, dot, inner = name.partition(".")
        kept = found[section][inner] if dot else found[section]
        if (
            value is not None
            and isinstance(kept, (int, float))
            and kept != (float(value) if isinstance(value, str) or isinstance(kept, float) else value)
        ):
            return repr(changes), f"{name} = {kept!r}"
    return repr(changes), None


WORDS = [
    "presets", "plan", "scorecard", "report", "notebooks", "sweep", "reproduce", "compare", "restore", "base",
    "--preset", "-f", "--set", "sft.steps=3", "sft.steps", "=", "sft=3", "sft={", "--gpus", "0", "-1", "9" * 30,
    "--gpu-memory", "80", "nan", "--rate", "312", "tiny", "smoke", "nowhere", "[red]x[/red]", "\x1b[31m", "", " ",
    "--help", "--out", "--markdown", "--", "-", "é", "\ud800", "x" * 5000, "explore", "--plan", "--seed", "--steps",
    "1e3", "rl.kl=.inf", "task.options={id: x}", "out=\0", "machine.launch=ddp", "eval=[1", "--set=seed=&a [*a]",
    "a\nb",
]  # fmt: skip


def commands(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """A command line of random words: it does what it says, or one line; whatever would train is not begun here."""
    rng = random.Random(f"{seed} {number}")
    starts = [
        ["presets", "tiny"], ["plan", "-f", "smoke", "--gpus", "0", "--rate", "1"], ["scorecard", "nowhere"],
        ["report", "nowhere"], ["reproduce", "-f", "smoke", "--set", "sft.steps=0"], ["sweep", "explore"],
        ["compare", "tiny", "nowhere", "--out", "x"], ["restore", "nowhere", "tiny", "--out", "x"],
        ["base", "x", "--steps", "0"],
    ]  # fmt: skip
    words = list(rng.choice(starts))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(words) + 1)
        words[at : at + rng.randrange(2)] = [rng.choice(WORDS)] if rng.random() < 0.9 else []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, chdir(folder), worked_off():
        return shown(words), judged(words)


def judged(words: list[str], name: str = "") -> str | None:
    """What is wrong with how the command ends."""
    result = CliRunner().invoke(command(), words, env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    if result.exception and not isinstance(result.exception, SystemExit):
        kind = type(result.exception).__name__
        trace = "".join(traceback.format_exception(result.exception)[-3:])
        return f"{shown(words)}: {kind}: {result.exception} {trace}"
    if result.exit_code in (0, 1):
        return None
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    if result.exit_code != 2 or (len(errors) != 1 and "─ Error ─" not in result.output):
        return f"{shown(words)}: status {result.exit_code}: {result.output[-800:]}"
    if errors and result.output.strip().splitlines()[-1] != errors[0]:
        return f"{shown(words)}: more than one line: {result.output[-800:]}"
    settings = any(f"{s}." in result.output or f"{s} =" in result.output for s in Config.model_fields)
    return None if name in result.output or settings else f"{shown(words)}: {name} is not named: {errors}"


def shown(words: list[str]) -> str:
    return " ".join(repr(word)[:60] for word in words)


def command():
    from oodlib.cli import app

    return app


WORK = (
    "oodlib.cli.execute.run_notebooks",
    "oodlib.models.base.train_base",
    "oodlib.analysis.sweep.ensure",
    "oodlib.spectral.comparison.Comparing.run",
    "oodlib.spectral.surgery.ModelEdit.write",
    "oodlib.scale.plan.describe",
)


class Begun(SystemExit):
    """Work would begin here."""


def worked_off() -> ExitStack:
    """A context in which whatever trains or decomposes ends at once, well."""
    stack = ExitStack()
    stack.enter_context(patch("oodlib.analysis.stats.RESAMPLES", 10))  # intervals are not at stake here
    for place in WORK:
        stack.enter_context(patch(place, side_effect=Begun(0)))
    return stack
