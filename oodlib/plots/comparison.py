"""The figures of `oodlib compare`: what changed where, angles against those of plain noise, singular values by index.

Drawn from the tables and arrays of a comparison's folder alone. What the spectral gap does not support is faded.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MultipleLocator, PercentFormatter

from oodlib.plots import draw
from oodlib.plots.style import GREY, MODULE_ORDER, WIDTH
from oodlib.spectral.comparison import read_arrays, summary

SHARE = 0.2  # the leading directions whose angle stands for a matrix: the k nearest to this share of its rank
POSITIONS = (np.arange(40) + 0.5) / 40  # along a spectrum, at which matrices of different rank are compared
QUARTILES = [0.25, 0.5, 0.75]


def read_tables(out: Path) -> dict[str, pd.DataFrame]:
    """The tables of a comparison's folder by checkpoint, in the order of their writing."""
    files = sorted(Path(out).glob("*.parquet"), key=lambda f: f.stat().st_mtime)
    if not files:
        raise ValueError(f"{out} holds no comparison (no .parquet file)")
    return {file.stem: pd.read_parquet(file) for file in files}


def where(tables: dict[str, pd.DataFrame]) -> Figure:
    """Layer by module, a column a checkpoint: the leading vectors' mean angle, above the values' mean relative change.

    A checkpoint's row is empty where it lacks a module; matrices that share layer and module (experts) show their mean.
    A cell is faded where the gap at k is smaller than the change, so that Wedin's bound says nothing: there the angle
    may be an accident of nearly equal singular values. Its number is set in italics where noise turns as much.
    """
    present = set().union(*(table["module"] for table in tables.values()))
    modules = [m for m in MODULE_ORDER if m in present] + sorted(present - set(MODULE_ORDER))
    maps = {name: _maps(table, modules) for name, table in tables.items()}
    layers = max(angles.shape[1] for angles, *_ in maps.values())
    width = min(max(2.6, 0.42 * layers + 1.4), max(2.6, (WIDTH - 1.2) / len(maps)))
    figure, axes = plt.subplots(
        2, len(maps), figsize=(width * len(maps) + 1.2, 6.4), squeeze=False, sharey=True, layout="constrained"
    )
    rows = (("mean principal angle (°)", "f", None), ("mean relative change", "%", PercentFormatter(1)))
    for row, (quantity, form, ticks) in enumerate(rows):
        top = max(float(np.nanmax(both[row].to_numpy())) for both in maps.values()) or 1
        digits = max(int(np.clip(np.ceil(-np.log10(top)), 0, 3)) + 1 - 2 * row, row)
        for axis, (name, found) in zip(axes[row], maps.items(), strict=True):
            draw.module_map(
                axis, found[row], top, bar=axis is axes[row, -1], annot=width > 0.42 * layers, fmt=f".{digits}{form}",
                annot_kws={"size": 9}, cbar_kws={"label": quantity, "format": ticks},
            )  # fmt: skip
            axis.set(title="" if row else name, xlabel="layer" if row else "")
            axis.grid(False)
            if row == 0:
                _fade(axis, found[2].to_numpy())
            for text in axis.texts:
                text.set_style("italic" if found[3 + row].to_numpy()[_cell(text)] else "normal")
    axes[0][0].set_ylabel(f"singular vectors, leading {_share(tables):.0%}")
    axes[1][0].set_ylabel("singular values, all")
    figure.supxlabel(
        "Faded: the gap in the spectrum at k is smaller than the change, so that a few swapped directions may make the "
        "angle.\nItalic: noise of the same norm turns (or changes) as much.",
        size=9,
    )
    return figure


def _share(tables: dict[str, pd.DataFrame]) -> float:
    """The share of directions, of those measured, that is nearest to SHARE."""
    shares = summary(next(iter(tables.values())))["share"]
    return float(shares.iloc[(shares - SHARE).abs().argmin()])


def _cell(text: Text) -> tuple[int, int]:
    """Row and column of the cell that a number stands in; a cell without a number has no text."""
    x, y = text.get_position()
    return int(y), int(x)


def _maps(table: pd.DataFrame, modules: list[str]) -> tuple[pd.DataFrame, ...]:
    """Tables of modules by layer: the angle (degrees), the values' relative change; whether the bound says nothing of
    the angle; whether noise turns as much; whether noise changes the values as much."""
    short = summary(table)
    at_k = short.loc[(short["share"] - SHARE).abs().groupby(short["matrix"]).idxmin()]
    angles, values, supports = (_grid(at_k, name, modules) for name in ("angle", "value_change", "gap_supports"))
    alike = [
        measured <= _grid(at_k, noise, modules) + 1e-9 if at_k[noise].notna().any() else measured < 0
        for measured, noise in ((angles, "noise_angle"), (values, "noise_value_change"))
    ]
    return angles, values, supports.fillna(1) < 0.5, *alike


def _grid(rows: pd.DataFrame, column: str, modules: list[str]) -> pd.DataFrame:
    """A column as a table of modules by layer; last, as "none", what is in no layer."""
    rows = rows.assign(**{column: rows[column].astype(float), "layer": rows["layer"].fillna(-1).astype(int)})
    grid = rows.pivot_table(index="module", columns="layer", values=column, dropna=False)
    outside = [c for c in grid.columns if c < 0]
    grid = grid[[c for c in grid.columns if c >= 0] + outside]
    return grid.rename(columns={-1: "none"}).reindex(modules)


def _fade(axis: Axes, faded: np.ndarray) -> None:
    mesh = axis.collections[0]
    mesh.update_scalarmappable()
    colours = mesh.get_facecolors().copy()
    white = np.array(to_rgba("white"))
    flat = faded.ravel()
    colours[flat] = 0.45 * colours[flat] + 0.55 * white
    mesh.set_array(None)
    mesh.set_facecolors(colours)
    for text in axis.texts:
        text.set_color("#222222" if faded[_cell(text)] else text.get_color())


def angle_spectra(out: Path, tables: dict[str, pd.DataFrame]) -> Figure:
    """The principal angles in ascending order, a column a checkpoint: median and middle half of the matrices.

    Solid is what was measured at each k, dashed what noise of the same norm gives.
    """
    figure, axes = draw.panels(len(tables), 5.4, 3.5, 0.8)
    for axis, (checkpoint, table) in zip(axes.flat, tables.items(), strict=False):
        angles = _angles(Path(out) / checkpoint, _changed(table))
        shares = sorted(angles["share"].unique())
        palette = dict(zip(shares, sns.color_palette("crest", len(shares)), strict=True))
        for (share, null), rows in angles.groupby(["share", "null"]):
            curves = rows.groupby("position")["angle"].quantile(QUARTILES).unstack()
            label, look, alpha = (
                (f"leading {share:.0%}", "-", 0.15) if not null else (f"noise, leading {share:.0%}", "--", 0.06)
            )
            draw.middle_half(axis, curves, look, palette[share], label, alpha)
        axis.set(title=checkpoint, xlabel="principal angle, by rank", yscale="log")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.xaxis.set_major_locator(MultipleLocator(0.25))
    for axis in axes[:, 0]:
        axis.set_ylabel("principal angle (°), left and right")
    draw.legend_below(figure, axes[0, 0], 3 if len(tables) > 1 else 1)
    return figure


def _changed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the matrices that differ at all; all of them, where none does."""
    ratio = table[table["metric"] == "change_ratio"].set_index("matrix")["value"]
    changed = table[table["matrix"].map(ratio) > 0]
    return changed if len(changed) else table


def _angles(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Columns position, angle (degrees, those above 0), share, null: each matrix's angles by rank, side and k."""
    frames = []
    for matrix, rows, cols in table[["matrix", "rows", "cols"]].drop_duplicates().itertuples(index=False):
        for name, angles in read_arrays(folder, matrix).items():
            if "angle_" in name:
                quantiles = np.interp(POSITIONS * (len(angles) - 1), np.arange(len(angles)), angles)
                frame = pd.DataFrame({"position": POSITIONS, "angle": np.degrees(quantiles)})
                share = round(int(name.rsplit("_", 1)[1]) / min(rows, cols), 2)
                frames.append(frame.assign(share=share, null=name.startswith("null")))
    angles = pd.concat(frames)
    return angles[angles["angle"] > 0]


def value_spectra(out: Path, tables: dict[str, pd.DataFrame]) -> Figure:
    """Relative change of the singular values by place in the spectrum; median and middle half of the matrices."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    looks = zip(cycle(("-", "--", ":", "-.")), sns.color_palette("crest", len(tables)), strict=False)
    for (name, table), (dash, hue) in zip(tables.items(), looks, strict=False):
        curves = []
        for matrix in _changed(table)["matrix"].unique():
            arrays = read_arrays(Path(out) / name, matrix)
            before, after = arrays["values_before"], arrays["values_after"]
            change = np.divide(after - before, before, out=np.zeros_like(before), where=before > 0)
            curves.append(np.interp(POSITIONS, (np.arange(len(change)) + 0.5) / len(change), change))
        middle = pd.DataFrame(np.quantile(curves, QUARTILES, axis=0).T, POSITIONS, QUARTILES)
        draw.middle_half(axis, middle, dash, hue, name)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set(
        xlabel="place in the spectrum (0 % = largest singular value)", ylabel="relative change of the singular value"
    )
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PercentFormatter(1))
    axis.legend()
    return figure
