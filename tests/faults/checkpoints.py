"""The row `checkpoints`: a damaged copy of a checkpoint, read by `oodlib compare`: it must not hang."""

import random
import shutil
import tempfile
from pathlib import Path

import small

from oodlib.models.sources import model_folder

WAYS = ("cut", "bits", "head", "rename", "foreign", "empty", "gone")
NAMES = ("pytorch_model.bin", "model-00001-of-00002.safetensors", "x.gguf", "[b].json")
LIMIT_S = 10  # of one core, beside what a good copy takes


def checkpoints(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """A tiny checkpoint with a file cut off, bits flipped, renamed, foreign or gone: numbers, a remark, or one line."""
    small.load()
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        copy, out = Path(folder) / "copy", Path(folder) / "out"
        shutil.copytree(model_folder("tiny"), copy)
        weights = copy / "model.safetensors"
        path = weights if rng.random() < 0.6 else rng.choice(sorted(copy.iterdir()))
        content, way = (
            bytearray(path.read_bytes()),
            rng.choice(WAYS),
        )
        if way == "cut":
            content = content[: rng.randrange(len(content))]
        elif way in ("bits", "head"):
            for _ in range(rng.choice((1, 5, 50))):
                at = rng.randrange(min(len(content), 3000) if way == "head" else len(content))
                content[at] ^= 1 << rng.randrange(8)
        elif way == "foreign":
            content = rng.choice([p for p in copy.iterdir() if p != path]).read_bytes()
        elif way == "empty":
            content = b""
        path.unlink()
        if way == "rename":
            path = path.with_name(rng.choice(NAMES))
        if way != "gone":
            path.write_bytes(content)
        process = small.Forked(
            small.command("compare", "tiny", copy, "--out", out, "--layers", "0", "--modules", "q_proj")
        )
        try:
            fault = process.end(6 * LIMIT_S).fault()
        except RuntimeError as error:
            fault = str(error)
    return f"{path.name}, {way}", fault
