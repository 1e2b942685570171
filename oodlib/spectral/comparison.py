"""`oodlib compare`: a base and any number of checkpoints, matrix by matrix, each result written as it comes.

    DIR/NAME.parquet         matrix, layer, module, rows, cols, k, metric, value (metrics: dissect.METRICS; radians)
    DIR/NAME.csv             the short of it, a row a matrix and k, in degrees (`summary`)
    DIR/NAME/MATRIX.safetensors  the arrays behind it: singular values, angles (dissect.dissect)
    DIR/NAME/tokens.parquet  what the directions that turned most read and write, where there is a tokenizer (lens.py)
    DIR/NAME/about.json      what was compared, with which settings, and remarks on what was left out or renamed

NAME is the checkpoint's folder name, and MATRIX the matrix's, escaped. A matrix whose file was written with the same
settings, from the same files, is not analysed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from oodlib.io import digest, write_whole
from oodlib.models.checkpoints import Weights, device, open_weights
from oodlib.models.names import MODULES, Pair, pair_up
from oodlib.provenance import PACKAGE
from oodlib.spectral.logit_lens import COLUMNS as TOKEN_COLUMNS
from oodlib.spectral.logit_lens import Lens
from oodlib.spectral.metrics import dissect
from oodlib.spectral.svd import Spectrum, as_matrix, spectrum

CODE = ("spectra.py", "overlap.py", "dissect.py", "lens.py", "checkpoints.py")  # a change in these makes results old
MEMORY = 4e9  # bytes that matrices analysed at the same time may take
COPIES = 18  # float64 copies that a square one takes, measured
DEFAULT_K = ("5%", "20%", "50%")


@dataclass(frozen=True)
class Settings:
    """What to compare: modules (glob patterns), layers (None: all), ks (numbers or shares such as "20%"), and the seed
    of the noise that is the null (None: no null)."""

    modules: tuple[str, ...] = MODULES
    layers: tuple[int, ...] | None = None
    ks: tuple[str | int, ...] = DEFAULT_K
    null_seed: int | None = 0

    def counts(self, rank: int) -> list[int]:
        """The numbers of directions that `ks` mean for a matrix of this rank, ascending, each at most the rank."""
        return sorted({min(rank, count_of(k, rank)) for k in self.ks})


def count_of(k: str | int, rank: int) -> int:
    """How many of `rank` directions `k` means: a number from 1, or a share such as "20%", of which at least one.

    ValueError for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(k).strip())
    number = float(found[1]) if found else 0.0
    if found and found[2] and 0 < number <= 100:
        return max(1, round(number / 100 * rank))
    if found and not found[2] and number >= 1 and number == int(number):
        return int(number)
    raise ValueError(
        f"k {k!r}: allowed are a number of directions from 1, or a share from above 0% to 100%, written with the sign"
    )


@dataclass(frozen=True)
class Target:
    """One checkpoint of a comparison, and where its results go."""

    name: str
    where: str
    weights: Weights
    pairs: list[Pair]
    remarks: dict[str, str]
    folder: Path
    asked: dict[str, Any]

    @property
    def table(self) -> Path:
        return self.folder.parent / f"{self.name}.parquet"

    def file(self, pair: Pair) -> Path:
        return array_file(self.folder, pair.name)

    def check_own(self) -> None:
        """ValueError if the folder holds results of other checkpoints, or with another k or null."""
        if (self.folder / "about.json").exists():
            earlier = json.loads((self.folder / "about.json").read_text())
            for name, value in self.asked.items():
                if earlier[name] != value:
                    raise ValueError(
                        f"{self.folder} holds results with {name} {earlier[name]}, not {value}: choose another folder "
                        "with --out"
                    )


class Comparing:
    """A base and checkpoints, opened and paired up."""

    def __init__(self, base: str, checkpoints: list[str], out: Path, settings: Settings | None = None):
        self.settings, self.out, self.where = settings or Settings(), Path(out), base
        self.settings.counts(1)  # says now what is wrong with a k
        self.base = open_weights(base)
        self.targets = []
        for name, where in zip(_names(checkpoints), checkpoints, strict=True):
            weights = open_weights(where, self.base)
            pairs, remarks = pair_up(self.base, weights, self.settings.modules, self.settings.layers)
            if not pairs:
                why = "; ".join(f"{name}: {reason}" for name, reason in list(remarks.items())[:5])
                raise ValueError(f"nothing of {where} can be compared with {base}: {why}")
            asked = {"base": _absolute(base), "checkpoint": _absolute(where)}
            asked |= {"k": list(map(str, self.settings.ks)), "null_seed": self.settings.null_seed}
            for pair in pairs:
                rank = min(pair.shape)
                if above := [str(k) for k in self.settings.ks if count_of(k, rank) > rank]:
                    note = f"has {rank} directions, fewer than k = {', '.join(above)}: all are taken"
                    remarks[pair.name] = "; ".join([*filter(None, [remarks.get(pair.name)]), note])
            self.targets.append(Target(name, where, weights, pairs, remarks, self.out / name, asked))
            self.targets[-1].check_own()

    def mark(self, target: Target) -> str:
        """Of a target's results: changes with the files, the settings and the code that they come from."""
        settings = replace(self.settings, modules=(), layers=None)  # which matrices are chosen changes none of them
        return digest([self.base.mark, target.weights.mark, repr(settings), _code()])

    def todo(self) -> list[tuple[Pair, list[Target]]]:
        """The base's matrices still to be analysed, each with the checkpoints that lack it."""
        by_name: dict[str, tuple[Pair, list[Target]]] = {}
        for target in self.targets:
            for pair in target.pairs:
                if _mark_of(target.file(pair)) != self.mark(target):
                    by_name.setdefault(pair.name, (pair, []))[1].append(target)
        return list(by_name.values())

    def run(self) -> Iterator[Pair]:
        """Analyse what is left, and yield each matrix when its results are written.

        A matrix that is unfit (NaN, inf) is left out with a remark.
        """
        self._say()
        todo = self.todo()
        lens = Lens.of(self.base) if todo else None
        threads = torch.get_num_threads()
        at_once = _at_once([pair.shape for pair, _ in todo], threads)
        torch.set_num_threads(threads // at_once)
        try:
            with ThreadPoolExecutor(at_once) as pool:
                yield from pool.map(lambda one: self._matrix(*one, lens), todo)
        finally:
            torch.set_num_threads(threads)
        self._say()
        for target in self.targets:
            _write_table(target.table, table := self.table(target))
            if table.empty:  # each matrix has its remark
                continue
            short = summary(table)
            write_whole(
                target.table.with_suffix(".csv"), lambda p, s=short: s.to_csv(p, index=False, float_format="%.6g")
            )
            if len(tokens := self.table(target, "tokens")):
                _write_table(target.folder / "tokens.parquet", tokens)

    def _matrix(self, pair: Pair, targets: list[Target], lens: Lens | None) -> Pair:
        try:
            first = spectrum(self.base.tensor(pair.name).to(device()), f"{pair.name} of {self.where}")
        except ValueError as error:
            for target in targets:
                target.remarks[pair.name] = str(error)
            return pair
        for target in targets:
            try:
                self._analyse(pair, first, target, lens)
            except ValueError as error:
                target.remarks[pair.name] = str(error)
        return pair

    def _say(self) -> None:
        for target in self.targets:
            about = {**target.asked, "matrices": len(target.pairs), "remarks": target.remarks}
            write_whole(target.folder / "about.json", lambda p, a=about: p.write_text(json.dumps(a, indent=1) + "\n"))

    def _analyse(self, pair: Pair, first: Spectrum, target: Target, lens: Lens | None) -> None:
        own = next(p for p in target.pairs if p.name == pair.name)
        seed = self.settings.null_seed
        seed = None if seed is None else seed + crc32(pair.name.encode())
        ks = self.settings.counts(min(pair.shape))
        weight = as_matrix(target.weights.tensor(own.other).to(device()), f"{own.other} of {target.where}")
        rows, arrays, found = dissect(first, weight, ks, seed, pair.name)
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        tokens = lens.look(found, pair.module) if lens else []
        about = {"mark": self.mark(target), "rows": json.dumps(rows), "tokens": json.dumps(tokens)}
        write_whole(target.file(pair), lambda path: save_file(arrays, path, metadata=about))

    def table(self, target: Target, kind: str = "rows") -> pd.DataFrame:
        """The rows (or the tokens) of every matrix that is analysed, in the base's order."""
        own = TOKEN_COLUMNS if kind == "tokens" else ["rows", "cols", "k", "metric", "value"]
        rows, mark = [], self.mark(target)
        for pair in target.pairs:
            if _mark_of(target.file(pair)) == mark:
                place = (pair.name, pair.layer, pair.module, *(pair.shape if kind == "rows" else ()))
                rows += [(*place, *row) for row in json.loads(_metadata(target.file(pair))[kind])]
        table = pd.DataFrame(rows, columns=["matrix", "layer", "module", *own])
        whole = [name for name in ("layer", "rows", "cols", "k") if name in table]
        return table.astype(dict.fromkeys(whole, "Int64"))


@cache
def _code() -> list[str]:
    return [(PACKAGE / file).read_text() for file in CODE]


def _at_once(shapes: list[tuple[int, int]], threads: int) -> int:
    """How many matrices to analyse at a time: small ones use several cores badly, large ones need the memory."""
    if device().type != "cpu" or not shapes:
        return 1
    return max(1, min(threads, int(MEMORY / (COPIES * 8 * max(rows * cols for rows, cols in shapes)))))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a matrix and k: the mean angle of left and right in degrees, what noise gives, and whether to trust it.

    Columns: matrix, layer, module, k, share (k over all directions), angle, noise_angle (degrees; NaN without a null),
    above_noise (missing without a null; an unchanged matrix never is), gap_supports (Wedin's bound is below 90
    degrees), value_change, noise_value_change, change_ratio.
    """
    keys = ["matrix", "layer", "module", "rows", "cols"]
    at_k = table[table["k"].notna()].pivot_table(index=["matrix", "k"], columns="metric", values="value", sort=False)
    whole = table[table["k"].isna()].pivot_table(index="matrix", columns="metric", values="value", sort=False)
    whole = whole.reindex(columns=["change_ratio", "value_change_mean", "null_value_change_mean"])
    found = at_k.reset_index().merge(whole.reset_index(), on="matrix", how="left")
    found = found.merge(table[keys].drop_duplicates(), on="matrix")  # apart, for outside the layers there is no number

    def degrees(prefix: str) -> pd.Series:
        sides = [f"{prefix}_{side}_mean" for side in ("left", "right")]
        return np.degrees(found.reindex(columns=sides).mean(axis=1))

    angle, noise, changed = degrees("angle"), degrees("null_angle"), found["change_ratio"] > 0
    return pd.DataFrame(
        {
            **{name: found[name] for name in ("matrix", "layer", "module", "k")},
            "share": (found["k"] / found[["rows", "cols"]].min(axis=1)).astype(float),
            "angle": angle,
            "noise_angle": noise,
            "above_noise": (changed & (angle > noise)).where(noise.notna()).astype("boolean"),
            "gap_supports": found["wedin_bound"] < np.pi / 2 - 1e-9,
            "value_change": found["value_change_mean"],
            "noise_value_change": found["null_value_change_mean"],
            "change_ratio": found["change_ratio"],
        }
    )


def _absolute(where: str) -> str:
    return str(Path(where).resolve()) if Path(where).exists() else where


def array_file(folder: Path, matrix: str) -> Path:
    """Where the arrays of a matrix lie; whatever its name, in this folder."""
    return Path(folder) / f"{quote(matrix, safe='')}.safetensors"


def read_arrays(folder: Path, matrix: str) -> dict[str, np.ndarray]:
    """The arrays of one matrix, from DIR/NAME."""
    with safe_open(array_file(folder, matrix), framework="np") as arrays:
        return {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="np") as arrays:
        return arrays.metadata() or {}


def _mark_of(file: Path) -> str | None:
    """The mark with which a matrix's file was written; None where there is none, or it is damaged."""
    try:
        return _metadata(file).get("mark") if file.exists() else None
    except SafetensorError:
        return None


def _names(checkpoints: list[str]) -> list[str]:
    """A short name for each: its last folder's, with as many of those before it as tell it from the others."""
    parts = [
        [p for p in re.split(r"[/\\@]", c) if p not in ("", ".", "..", "~")] or ["checkpoint"] for c in checkpoints
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        names = [f"{name}-checkpoint" if name == "figures" else name for name in names]  # there the figures lie
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the same checkpoint is given twice: {', '.join(checkpoints)}")


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_whole(path, lambda p: table.to_parquet(p, index=False))
