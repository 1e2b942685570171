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

from oodlib.plots.style import MODULE_ORDER, WIDTH
from oodlib.spectral.comparison import read_arrays, summary

SHARE = 0.2  # the leading directions whose angle stands for a matrix: the k nearest to this share of its rank
PLACES = 40


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
    found = set().union(*(table["module"] for table in tables.values()))
    modules = [m for m in MODULE_ORDER if m in found] + sorted(found - set(MODULE_ORDER))
    maps = [(name, *_maps(table, modules)) for name, table in tables.items()]
    layers = max(m[1].shape[1] for m in maps)
    width = min(max(2.6, 0.42 * layers + 1.4), max(2.6, (WIDTH - 1.2) / len(maps)))
    figure, axes = plt.subplots(
        2, len(maps), figsize=(width * len(maps) + 1.2, 6.4), squeeze=False, sharey=True, layout="constrained"
    )
    tops = [max(float(np.nanmax(m[i].to_numpy())) for m in maps) for i in (1, 2)]
    labels = ("mean principal angle (°)", "mean relative change")
    for column, (name, angles, values, faded, like_noise) in enumerate(maps):
        for row, (table, top, label) in enumerate(zip((angles, values), tops, labels, strict=True)):
            axis, last = axes[row][column], column == len(maps) - 1
            decimals = int(np.clip(np.ceil(-np.log10(top or 1)), 0, 3)) + 1 - 2 * row
            form = f".{max(decimals, row)}{'%' if row else 'f'}"
            sns.heatmap(
                table, ax=axis, cmap="viridis", vmin=0, vmax=top or 1, cbar=last, annot=width > 0.42 * layers, fmt=form,
                annot_kws={"size": 9}, cbar_kws={"label": label, "format": PercentFormatter(1) if row else None},
            )  # fmt: skip
            axis.set(title=name if row == 0 else "", xlabel="layer" if row else "", ylabel="")
            axis.tick_params(axis="y", rotation=0)
            axis.grid(False)
            if row == 0:
                _fade(axis, faded.to_numpy())
            for text in axis.texts:
                text.set_style("italic" if like_noise[row].to_numpy()[_cell(text)] else "normal")
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


def _maps(
    table: pd.DataFrame, modules: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame]]:
    """Angle (degrees), relative value change, whether the bound says nothing, whether noise turns (changes) as much."""
    short = summary(table)
    at_k = short.loc[(short["share"] - SHARE).abs().groupby(short["matrix"]).idxmin()]
    angles = _grid(at_k, "angle", modules)
    values = _grid(at_k, "value_change", modules)
    alike = [
        found <= _grid(at_k, noise, modules) + 1e-9 if at_k[noise].notna().any() else found < 0
        for found, noise in ((angles, "noise_angle"), (values, "noise_value_change"))
    ]
    return angles, values, _grid(at_k, "gap_supports", modules).fillna(1) < 0.5, tuple(alike)


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
    columns = min(len(tables), 3)
    rows = -(-len(tables) // columns)
    size = (min(WIDTH, 5.4 * columns), 3.5 * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis in axes.flat[len(tables) :]:
        axis.set_axis_off()
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=False):
        found = _angles(Path(out) / name, _changed(table))
        shares = sorted(found["share"].unique())
        palette = dict(zip(shares, sns.color_palette("crest", len(shares)), strict=True))
        for (share, null), mine in found.groupby(["share", "null"]):
            curve = mine.groupby("place")["angle"].quantile([0.25, 0.5, 0.75]).unstack()
            label = f"noise, leading {share:.0%}" if null else f"leading {share:.0%}"
            axis.plot(curve.index, curve[0.5], "--" if null else "-", color=palette[share], label=label)
            axis.fill_between(
                curve.index, curve[0.25], curve[0.75], color=palette[share], alpha=0.06 if null else 0.15, linewidth=0
            )
        axis.set(title=name, xlabel="principal angle, by rank", yscale="log")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.xaxis.set_major_locator(MultipleLocator(0.25))
    for axis in axes[:, 0]:
        axis.set_ylabel("principal angle (°), left and right")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if columns > 1 else 1)
    return figure


def _changed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the matrices that differ at all; all of them, where none does."""
    ratio = table[table["metric"] == "change_ratio"].set_index("matrix")["value"]
    mine = table[table["matrix"].map(ratio) > 0]
    return mine if len(mine) else table


def _angles(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Columns place, angle (degrees, those above 0), share, null: each matrix's angles by rank, side and k."""
    places = (np.arange(PLACES) + 0.5) / PLACES
    curves, shares, nulls = [], [], []
    for matrix, rows, cols in table[["matrix", "rows", "cols"]].drop_duplicates().itertuples(index=False):
        for name, angles in read_arrays(folder, matrix).items():
            if "angle_" in name:
                curves.append(np.interp(places * (len(angles) - 1), np.arange(len(angles)), angles))  # quantiles
                shares.append(round(int(name.rsplit("_", 1)[1]) / min(rows, cols), 2))
                nulls.append(name.startswith("null"))
    found = pd.DataFrame(
        {
            "place": np.tile(places, len(curves)),
            "angle": np.degrees(np.concatenate(curves)),
            "share": np.repeat(shares, PLACES),
            "null": np.repeat(nulls, PLACES),
        }
    )
    return found[found["angle"] > 0]


def value_spectra(out: Path, tables: dict[str, pd.DataFrame]) -> Figure:
    """Relative change of the singular values by place in the spectrum; median and middle half of the matrices."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    styles = zip(cycle(("-", "--", ":", "-.")), sns.color_palette("crest", len(tables)), strict=False)
    places = (np.arange(PLACES) + 0.5) / PLACES
    for (name, table), (dash, colour) in zip(tables.items(), styles, strict=False):
        curves = []
        for matrix in _changed(table)["matrix"].unique():
            arrays = read_arrays(Path(out) / name, matrix)
            before, after = arrays["values_before"], arrays["values_after"]
            change = np.divide(after - before, before, out=np.zeros_like(before), where=before > 0)
            curves.append(np.interp(places, (np.arange(len(change)) + 0.5) / len(change), change))
        low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        axis.plot(places, middle, dash, color=colour, label=name)
        axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.axhline(0, color="#555555", linewidth=0.8)
    axis.set(
        xlabel="place in the spectrum (0 % = largest singular value)", ylabel="relative change of the singular value"
    )
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PercentFormatter(1))
    axis.legend()
    return figure
