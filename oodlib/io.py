"""Files: written whole or not at all, tables, digests."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import re
import reprlib
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from pandas.api.types import is_numeric_dtype

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def digest(value: Any) -> str:
    """A SHA-256 of anything that JSON can write, as hexadecimal text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def one_line(text: object) -> str:
    """Text, or what an error says, as one line for a message; its kind where it says nothing."""
    try:
        return " ".join(str(text).split()) or type(text).__name__
    except Exception:  # an error of anybody's, which cannot say what it is
        return type(text).__name__


def shown(value: object) -> str:
    """A value for a message: in one line, and short however large it is."""
    return one_line(_REPR.repr(value))


def as_name(text: str) -> str:
    """The same text, if a file or folder may be called so; else a ValueError."""
    if not text.strip(" .") or len(text) > 200 or re.search(r"[/\\\x00-\x1f\x7f]", text):
        raise ValueError(f"{shown(text)} cannot be a name: 1 to 200 characters, no slash, no control character")
    return text


def first_fault(error: Any) -> str:
    """What is wrong first, in one line: "a.b: what, not VALUE"; `error` is pydantic's ValidationError."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    got = "" if first["type"] in ("missing", "value_error", "json_invalid") else f", not {shown(first['input'])}"
    return one_line(f"{place and place + ': '}{first['msg'][0].lower()}{first['msg'][1:]}{got}")


def refuse_pipe(path: Path) -> None:
    """ValueError for what would be waited for without end: a pipe, a socket, a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} cannot be read: it is no file, but a pipe or a device")


def read_bytes(path: Path) -> bytes:
    """What a file holds. ValueError, one line with the file's name, where it cannot be read."""
    try:
        refuse_pipe(Path(path))
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def as_text(content: bytes, path: Path) -> str:
    """A file's content as text, a byte order mark aside. ValueError, one line, for another encoding than UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ValueError(f"{path} cannot be read: it is not UTF-8 text ({byte})") from None


def read_text(path: Path) -> str:
    """A UTF-8 file's text. ValueError, one line with the file's name, where it cannot be read as such."""
    return as_text(read_bytes(path), path)


def read_table(path: Path, numbers: Iterable[str] = (), texts: Iterable[str] = ()) -> pd.DataFrame:
    """A table, which must have these columns of numbers and of text. ValueError, one line, for what is none."""
    content = io.BytesIO(read_bytes(path))
    try:
        frame = pd.read_csv(content) if path.suffix == ".csv" else pd.read_parquet(content)
    except Exception as error:  # pandas and pyarrow have many
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None
    if absent := [name for name in (*texts, *numbers) if name not in frame]:
        raise ValueError(f"{path}: no column {', '.join(absent)}")
    for name in numbers:
        if len(frame) and not is_numeric_dtype(frame[name]):
            raise ValueError(f"{path}: the column {name} holds what is no number")
    return frame


def write_table(path: Path, frame: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        write_whole(path, lambda p: frame.to_csv(p, index=False, float_format="%.6g"))
        return
    frame = frame.astype(dict.fromkeys(frame.select_dtypes(["object", "string"]), "category"))
    write_whole(path, lambda p: frame.to_parquet(p, index=False, compression="zstd", compression_level=15))


def read_json(path: Path, default: Any = None) -> Any:
    """What a JSON file holds; `default` where there is no file. ValueError, one line, for what is no JSON, or of
    another type than the default."""
    if default is not None and not path.exists():
        return default
    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deeply") from None
    if "\\ud" in text.lower():  # an escape that may be half of a character, which can be written nowhere
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path} cannot be read: it holds half of a character") from None
    if default is not None and type(value) is not type(default):
        raise ValueError(f"{path}: expected a {type(default).__name__}, not {shown(value)}")
    return value


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


def as_os_error(error: Exception) -> OSError | None:
    """What kept a file from being written, however its writer says so; None where it is something else."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if re.search(r"PytorchStreamWriter failed|file write failed|Parent directory .* does not exist", str(error)):
        return OSError(errno.EIO, "a file could not be written, for lack of space or of its folder")
    return None


def clear_error(error: OSError, folder: Path) -> OSError:
    """The same error, said so that a user knows what to do."""
    reasons = {
        errno.ENOENT: "a folder or file in it is gone",
        errno.EFBIG: "the file would be larger than allowed",
        errno.EDQUOT: "no space is left in the quota",
        errno.ENOSPC: "no space is left on the disk",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "writing there is not allowed",
    }
    why = reasons.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, f"cannot write into {folder}: {why}; what was there is untouched")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file or a folder under another name, then put it in place of `path` in one step.

    ValueError, and nothing is changed, where a file would take the place of a folder.
    """
    path = Path(path)
    temporary, old = (path.parent / f".{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}" for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        write(temporary)
        if path.is_dir() and not temporary.is_dir():
            raise ValueError(f"{path} is a folder, and a file cannot take its place")
        if path.is_dir():  # a folder cannot be replaced in one step, but it is never there in part
            os.replace(path, old)
        os.replace(temporary, path)
    except Exception as error:
        if os_error := as_os_error(error):
            raise clear_error(os_error, path.parent) from None
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder what processes of this machine were writing there when they were killed."""
    for path in folder.glob(f".{_HOST}-*-????????-*"):
        process = path.name.split("-")[1]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)


# ---- the table of measurements ---------------------------------------------------------------------------

KEYS = ["stage", "arm", "from_step", "step", "seed", "split"]  # `arm`: sft, rl, a baseline, or a surgical edit
COLUMNS = [*KEYS, "metric", "value", "n"]


def as_measurements(rows: list[tuple]) -> pd.DataFrame:
    """Rows (stage, arm, from_step, step, seed, split, metric, value, n) as a table."""
    return pd.DataFrame(rows, columns=COLUMNS)
