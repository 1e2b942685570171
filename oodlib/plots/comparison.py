"""The figures of `oodlib compare`: what changed where, and the spectra of values and angles beside those of noise."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from oodlib.plots import draw
from oodlib.plots.style import GREY, MODULE_ORDER
from oodlib.spectral.comparison import read_arrays, summary

SHARE = 0.2  # the leading directions whose angle stands for a matrix: the k nearest to this share of its rank
POSITIONS = (np.arange(40) + 0.5) / 40  # along a spectrum, at which matrices of different rank are compared


def where(tables: dict[str, pd.DataFrame]) -> Figure:
    """Layer by module, a row a checkpoint: the relative size of the change, and the leading vectors' mean angle.

    Matrices that share layer and module (experts) show their mean; a cell is empty where a checkpoint lacks the module.
    An angle is in brackets where the gap at k is smaller than the change, so that Wedin's bound says nothing and a few
    swapped directions may make the angle; it has a ≈ where noise of the same norm turns as much.
    """
    present = set().union(*(table["module"] for table in tables.values()))
    modules = [m for m in MODULE_ORDER if m in present] + sorted(present - set(MODULE_ORDER))
    leading = {name: _leading(table) for name, table in tables.items()}
    layers = max(rows["layer"].nunique() for rows in leading.values())
    size = (2 * max(4.2, 0.55 * layers + 1.8), len(tables) * (0.32 * len(modules) + 1.2) + 0.6)
    figure, axes = plt.subplots(len(tables), 2, figsize=size, squeeze=False, sharey=True, layout="constrained")
    quantities = {"change_ratio": "change, ‖ΔW‖ / ‖W‖", "angle": "mean principal angle (°)"}
    for panels, (column, quantity) in zip(axes.T, quantities.items(), strict=True):
        top = max(rows[column].max() for rows in leading.values()) or 1
        for axis, (name, rows) in zip(panels, leading.items(), strict=True):
            in_order = sorted(rows["layer"].unique(), key=lambda layer: (layer == "none", str(layer).zfill(4)))
            grid, text = (
                rows.pivot(index="module", columns="layer", values=what).reindex(modules)[in_order]
                for what in (column, f"{column}_text")
            )
            draw.module_map(axis, grid, top, annot=text, fmt="", annot_kws={"size": 9}, cbar_kws={"label": quantity})
            axis.set_title(name, parse_math=False)
    figure.supxlabel(
        f"Angles are of the leading {rows['share'].median():.0%}. In brackets: the gap in the spectrum is smaller than "
        "the change,\nso that a few swapped directions may make the angle. ≈: noise of the same norm turns as much.",
        size=9,
    )
    return figure


def _leading(table: pd.DataFrame) -> pd.DataFrame:
    """A row a layer and module, the means of its matrices at the k nearest to SHARE; and the texts of the map's cells.

    What is in no layer has the layer "none".
    """
    short = summary(table)
    short = short.loc[(short["share"] - SHARE).abs().groupby(short["matrix"]).idxmin()]
    short["alike"] = short["angle"] <= short["noise_angle"] + 1e-9
    short["layer"] = short["layer"].astype(object).where(short["layer"].notna(), "none")
    numbers = ["share", "change_ratio", "angle", "gap_supports", "alike"]
    rows = short.astype(dict.fromkeys(numbers, float)).groupby(["layer", "module"])[numbers].mean().reset_index()
    angles = zip(rows["angle"], rows["gap_supports"], rows["alike"], strict=True)
    texts = ["≈" * (noise > 0.5) + (f"{angle:.1f}" if gap > 0.5 else f"({angle:.1f})") for angle, gap, noise in angles]
    return rows.assign(angle_text=texts, change_ratio_text=rows["change_ratio"].map("{:.1%}".format))


def spectra(out: Path, tables: dict[str, pd.DataFrame]) -> Figure:
    """A row a checkpoint: the singular values' relative change by place, and the principal angles by rank, ascending.

    Lines are medians of the matrices that changed, bands hold their middle half; dashed is what noise of the same norm
    gives.
    """
    figure, axes = plt.subplots(len(tables), 2, figsize=(9.2, 3.4 * len(tables)), squeeze=False, layout="constrained")
    for (left, right), (name, table) in zip(axes, tables.items(), strict=True):
        values, angles = _curves(Path(out) / name, table)
        look = {"x": "position", "y": "value", "estimator": "median", "errorbar": ("pi", 50)}
        sns.lineplot(values, ax=left, color=GREY, **look)
        sns.lineplot(angles.sort_values("share"), ax=right, hue="leading", style="of", palette="viridis", **look)
        sns.move_legend(right, "center left", bbox_to_anchor=(1, 0.5))
        left.axhline(0, color=GREY, linewidth=0.8)
        left.set_title(f"{name}: values", parse_math=False)
        left.set(
            xlabel="place in the spectrum (0 % = largest)",
            ylabel="relative change of the value",
        )
        left.yaxis.set_major_formatter(PercentFormatter(1))
        right.set(
            title="vectors",
            xlabel="principal angle, by rank",
            ylabel="angle (°), left and right",
            yscale="log",
        )
        for axis in (left, right):
            axis.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _curves(folder: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves of each matrix that changed (of all, if none did), at POSITIONS: columns position, value.

    First the singular values' relative change; then the angles above 0 in degrees, left and right, with the columns
    share, leading (the share in words) and of (training or noise).
    """
    ratio = table[table["metric"] == "change_ratio"].set_index("matrix")["value"]
    changed = table[table["matrix"].map(ratio) > 0]
    matrices = (changed if len(changed) else table)[["matrix", "rows", "cols"]].drop_duplicates()
    values, angles = [], []
    for matrix, rows, cols in matrices.itertuples(index=False):
        arrays = read_arrays(folder, matrix)
        before, after = arrays["values_before"], arrays["values_after"]
        change = np.divide(after - before, before, out=np.zeros_like(before), where=before > 0)
        values.append(_resampled(change))
        for name, angle in arrays.items():
            if "angle_" in name:
                share = int(name.rsplit("_", 1)[1]) / min(rows, cols)
                of = "noise" if name.startswith("null") else "training"
                angles.append(_resampled(np.degrees(angle)).assign(share=share, leading=f"{share:.0%}", of=of))
    angles = pd.concat(angles)
    return pd.concat(values), angles[angles["value"] > 0]


def _resampled(curve: np.ndarray) -> pd.DataFrame:
    places = (np.arange(len(curve)) + 0.5) / len(curve)
    return pd.DataFrame({"position": POSITIONS, "value": np.interp(POSITIONS, places, curve)})
