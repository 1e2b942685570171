"""`oodlib compare`: a base and any number of checkpoints, matrix by matrix, each result written as it comes.

    DIR/NAME.parquet         matrix, layer, module, rows, cols, k, metric, value (metrics: metrics.METRICS; radians)
    DIR/NAME.csv             the short of it, a row a matrix and k, in degrees (`summary`)
    DIR/NAME/MATRIX.safetensors  the arrays behind it: singular values, angles (metrics.measure)
    DIR/NAME/tokens.parquet  what the directions that turned most read and write, if there is a tokenizer (logit_lens)
    DIR/NAME/about.json      what was compared, with which settings, and remarks on what was left out or renamed

NAME is the checkpoint's folder name, and MATRIX the matrix's, escaped. A matrix whose file was written by the same
method with the same settings, from the same files, is not analysed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from oodlib.io import digest, one_line, read_object, write_json, write_table, write_whole
from oodlib.models.checkpoints import open_weights
from oodlib.models.pairs import Pair, left_out, pair_up
from oodlib.models.weights import Weights, device, is_turned
from oodlib.spectral.angles import compare
from oodlib.spectral.logit_lens import TOKEN_COLUMNS, LogitLens
from oodlib.spectral.metrics import measure
from oodlib.spectral.svd import Count, as_matrix, count_of, spectrum

METHOD = 2  # to be raised when numbers are meant to change: results of another method are measured anew
DEFAULT_K = ("5%", "20%", "50%")


@dataclass(frozen=True)
class Target:
    """One checkpoint of a comparison: its matrices by the base's names, and where its results go.

    about: what the results are of. mark: changes with the files, the settings and the method that they come from.
    """

    name: str
    weights: Weights
    pairs: dict[str, Pair]
    remarks: dict[str, str]
    folder: Path
    about: dict[str, str | int | list[str] | None]
    mark: str

    def results(self, matrix: str) -> dict[str, Any]:
        """The rows and tokens of a matrix; nothing where it is not analysed yet."""
        if not (file := array_file(self.folder, matrix)).exists():
            return {}
        try:
            with safe_open(file, framework="np") as arrays:
                results = json.loads((arrays.metadata() or {}).get("results", "{}"))
        except (SafetensorError, ValueError):  # damaged: analysed again
            return {}
        return results if results.get("mark") == self.mark else {}

    def table(self, content: str = "rows") -> pd.DataFrame:
        """The rows (or "tokens") of every matrix that is analysed, in the base's order."""
        columns = TOKEN_COLUMNS if content == "tokens" else ["rows", "cols", "k", "metric", "value"]
        rows = []
        for pair in self.pairs.values():
            place = (pair.name, pair.layer, pair.module, *(pair.shape if content == "rows" else ()))
            rows += [(*place, *row) for row in self.results(pair.name).get(content, [])]
        table = pd.DataFrame(rows, columns=["matrix", "layer", "module", *columns])
        return table.astype({name: "Int64" for name in ("layer", "rows", "cols", "k") if name in table})

    def note(self) -> None:
        about = {**self.about, "matrices": len(self.pairs), "remarks": self.remarks}
        write_json(self.folder / "about.json", about)


class Comparing:
    """A base and checkpoints, opened and paired up.

    modules: glob patterns (None: every matrix of a layer); layers: their numbers (None: all); ks: leading directions,
    numbers or shares such as "20%"; null_seed: of the noise that is the null (None: no null); adapter_base: where the
    base of adapters lies, if not where they say. ValueError: what `open_weights` and `pair_up` refuse, a
    checkpoint of which nothing can be compared, a folder that holds results of other checkpoints or settings.
    """

    def __init__(
        self,
        base: str,
        checkpoints: Sequence[str],
        out: Path,
        modules: Sequence[str] | None = None,
        layers: Collection[int] | None = None,
        ks: Sequence[Count] = DEFAULT_K,
        null_seed: int | None = 0,
        adapter_base: str | None = None,
    ):
        self.out, self.ks, self.null_seed = Path(out), tuple(ks), null_seed
        self.counts(1)  # says now what is wrong with a k
        self.base, self.targets = open_weights(base, adapter_base=adapter_base), []
        for name, where in zip(_names(checkpoints), checkpoints, strict=True):
            weights = open_weights(where, self.base, adapter_base)
            pairs, remarks = pair_up(self.base, weights, modules, layers)
            if not pairs:
                why = "; ".join(f"{name}: {reason}" for name, reason in list(remarks.items())[:5])
                raise ValueError(f"nothing of {where} can be compared with {base}: {why}")
            said = [left_out(w) if modules is None and layers is None else w.remarks for w in (self.base, weights)]
            remarks = {**said[0], **said[1], **remarks}
            for pair in pairs:
                rank = min(pair.shape)
                if above := [str(k) for k in self.ks if count_of(k, rank) > rank]:
                    note = f"has {rank} directions, fewer than k = {', '.join(above)}: all are taken"
                    remarks[pair.name] = "; ".join([*filter(None, [remarks.get(pair.name)]), note])
            about = {"base": _named(base), "checkpoint": _named(where)}
            about |= {"k": list(map(str, self.ks)), "null_seed": null_seed}
            mark = digest([METHOD, self.base.mark, weights.mark, about["k"], null_seed])
            target = Target(name, weights, {pair.name: pair for pair in pairs}, remarks, self.out / name, about, mark)
            earlier = read_object(file) if (file := target.folder / "about.json").exists() else about
            for setting, value in about.items():
                if earlier.get(setting) != value:
                    was = f"{setting} {earlier.get(setting)}, not {value}"
                    raise ValueError(f"{target.folder} holds results with {was}: choose another folder with --out")
            self.targets.append(target)

    def counts(self, rank: int) -> list[int]:
        """The numbers of directions that `ks` mean for a matrix of this rank, ascending, each at most the rank."""
        return sorted({min(rank, count_of(k, rank)) for k in self.ks})

    def todo(self) -> list[tuple[Pair, list[Target]]]:
        """The base's matrices still to be analysed, each with the checkpoints that lack it."""
        by_name: dict[str, tuple[Pair, list[Target]]] = {}
        for target in self.targets:
            for pair in target.pairs.values():
                if not target.results(pair.name):
                    by_name.setdefault(pair.name, (pair, []))[1].append(target)
        return list(by_name.values())

    def run(self) -> Iterator[Pair]:
        """Analyse what is left, and yield each matrix when its results are written.

        A matrix that is unfit (NaN, inf) is left out with a remark.
        """
        for target in self.targets:
            target.note()
        todo, lens = self.todo(), None
        try:
            lens = LogitLens.of(self.base) if todo else None
        except ValueError as error:
            for target in self.targets:
                target.remarks["tokens"] = f"not shown: {error}"
        for pair, targets in todo:
            self._analyse(pair, targets, lens)
            yield pair
        for target in self.targets:
            target.note()
            table, tokens = target.table(), target.table("tokens")
            write_whole(self.out / f"{target.name}.parquet", lambda path, t=table: t.to_parquet(path, index=False))
            if len(table):  # else each matrix has its remark
                write_table(self.out / f"{target.name}.csv", summary(table))
            if len(tokens):
                write_whole(target.folder / "tokens.parquet", lambda path, t=tokens: t.to_parquet(path, index=False))

    def _analyse(self, pair: Pair, targets: list[Target], lens: LogitLens | None) -> None:
        """Compare one matrix of the base with that of each checkpoint."""
        name, first = pair.name, None
        seed = None if self.null_seed is None else self.null_seed + crc32(name.encode())
        for target in targets:
            try:
                first = first or spectrum(self.base.matrix(name).to(device()), f"{name} of {self.base.path}")
                other = target.pairs[name].other
                weight = as_matrix(target.weights.matrix(other).to(device()), f"{other} of {target.weights.path}")
                both = compare(first, weight, name=name)
                rows, arrays = measure(both, self.counts(len(first.values)), seed)
                turned = name in self.base.shapes and is_turned(self.base.shapes, name)
                tokens = lens.look(both, pair.module, turned) if lens else []
            except (ValueError, torch.linalg.LinAlgError) as error:
                target.remarks[name] = one_line(error)
                continue
            arrays = {key: np.ascontiguousarray(values) for key, values in arrays.items()}
            # in one piece, for safetensors writes several in any order
            about = {"results": json.dumps({"mark": target.mark, "rows": rows, "tokens": tokens})}
            write_whole(array_file(target.folder, name), lambda p, a=arrays, m=about: save_file(a, p, metadata=m))


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
    joined = at_k.reset_index().merge(whole.reset_index(), on="matrix", how="left")
    joined = joined.merge(table[keys].drop_duplicates(), on="matrix")  # separately, for embeddings have no layer

    def degrees(prefix: str) -> pd.Series:
        sides = [f"{prefix}_{side}_mean" for side in ("left", "right")]
        return np.degrees(joined.reindex(columns=sides).mean(axis=1))

    angle, noise, changed = degrees("angle"), degrees("null_angle"), joined["change_ratio"] > 0
    return pd.DataFrame(
        {
            **{name: joined[name] for name in ("matrix", "layer", "module", "k")},
            "share": (joined["k"] / joined[["rows", "cols"]].min(axis=1)).astype(float),
            "angle": angle,
            "noise_angle": noise,
            "above_noise": (changed & (angle > noise)).where(noise.notna()).astype("boolean"),
            "gap_supports": joined["wedin_bound"] < np.pi / 2 - 1e-9,
            "value_change": joined["value_change_mean"],
            "noise_value_change": joined["null_value_change_mean"],
            "change_ratio": joined["change_ratio"],
        }
    )


def array_file(folder: Path, matrix: str) -> Path:
    """Where the arrays of a matrix lie; whatever its name, in this folder."""
    return Path(folder) / f"{quote(matrix, safe='')}.safetensors"


def read_arrays(folder: Path, matrix: str) -> dict[str, np.ndarray]:
    """The arrays of one matrix, from DIR/NAME."""
    with safe_open(array_file(folder, matrix), framework="np") as arrays:
        return {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118


def _named(where: str) -> str:
    """A checkpoint as it was named; a path in full."""
    return str(Path(where).resolve()) if Path(where).exists() else where


def _names(checkpoints: list[str]) -> list[str]:
    """A short name for each: its last folder's, with as many of those before it as tell it from the others."""
    parts = [[p for p in re.split(r"[/\\@]", c) if p.strip(".~")] or ["checkpoint"] for c in checkpoints]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        names = [f"{name}-checkpoint" if name == "figures" else name for name in names]  # where the figures are
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the same checkpoint is given twice: {', '.join(checkpoints)}")
