"""Files: written whole or not at all, tables, digests."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd


def digest(value: Any) -> str:
    """A SHA-256 of anything that JSON can write, as hexadecimal text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        write_whole(path, lambda p: frame.to_csv(p, index=False, float_format="%.6g"))
        return
    frame = frame.astype(dict.fromkeys(frame.select_dtypes(["object", "string"]), "category"))
    write_whole(path, lambda p: frame.to_parquet(p, index=False, compression="zstd", compression_level=15))


def read_json(path: Path, default: Any = None) -> Any:
    """What a JSON file holds; `default` where there is no file. ValueError, one line, for what is no JSON."""
    if not path.exists() and default is not None:
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, which is an object: names with values. ValueError for anything else."""
    if not isinstance(value := read_json(path), dict):
        raise ValueError(f"{path} cannot be read: expected an object in braces, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_figure(folder: Path, figure: Any, name: str) -> None:
    """Keep a matplotlib figure as PNG and SVG in a folder's figures/, without date and version."""
    png = as_png(figure)
    write_whole(folder / "figures" / f"{name}.png", lambda p: p.write_bytes(png))
    write_whole(folder / "figures" / f"{name}.svg", lambda p: figure.savefig(p, format="svg", metadata={"Date": None}))


def as_png(figure: Any) -> bytes:
    """A matplotlib figure in 256 colours, at less than half of the size."""
    from PIL import Image  # late, as matplotlib is

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def clear_error(error: OSError, folder: Path) -> OSError:
    """The same error, said so that a user knows what to do."""
    reasons = {
        errno.ENOSPC: "no space is left on the disk",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "writing there is not allowed",
    }
    why = reasons.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, f"cannot write into {folder}: {why}; what was there is untouched")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file or a folder under another name, then put it in place of `path` in one step."""
    path = Path(path)
    temporary, old = (path.parent / f".{uuid.uuid4().hex[:8]}-{path.name}" for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if path.is_dir():  # a folder cannot be replaced in one step, but it is never there in part
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise clear_error(error, path.parent) from None
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


# ---- the table of measurements ---------------------------------------------------------------------------

KEYS = ["stage", "arm", "from_step", "step", "seed", "split"]  # `arm`: sft, rl, a baseline, or a surgical edit
COLUMNS = [*KEYS, "metric", "value", "n"]


def as_measurements(rows: list[tuple]) -> pd.DataFrame:
    """Rows (stage, arm, from_step, step, seed, split, metric, value, n) as a table."""
    return pd.DataFrame(rows, columns=COLUMNS)
