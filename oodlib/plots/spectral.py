"""The figures of stage 3: spectra, rotation and surgery."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from oodlib.analysis.stats import Estimate, bands, nearer_to_peak
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, LABELS, WIDTH, colour, in_order, label

ANGLES = ("angle_left", "angle_right")  # metrics of the table `rotation`: leading directions, radians
EDITS = {  # of surgery: label, mark and line
    "random": ("null: random turn, same angles", "s--"),
    "noise": ("null: noise, same size", "v--"),
    "signs": ("null: same turn, random signs", "^--"),
    "values": ("values", "D-"),
    "vectors": ("vectors", "o-"),
}


def value_change(rotation: pd.DataFrame) -> Figure:
    """Relative change of singular values, and angle of singular vectors, against the index, along the run."""
    data = rotation[rotation["arm"].isin(["sft", "rl"])]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    panels = (("value_change", "relative change", "Singular values"), ("direction", "angle (°)", "Singular vectors"))
    for axis, (metric, unit, title) in zip(axes, panels, strict=True):
        rows = data[data["metric"].astype(str).str.startswith(metric)]
        sizes = rows.groupby(["layer", "module"], observed=True)["index"].transform("max")
        rows = rows.assign(position=((rows["index"] + 0.5) / (sizes + 1) * 20).astype(int) / 20 + 0.025)
        if metric == "direction":
            rows = rows.assign(value=np.degrees(rows["value"]))
        for pair, name, hue, dash in _pairs(rows):
            look = {"estimator": "median", "errorbar": ("pi", 50), "color": hue, "linestyle": dash, "label": name}
            sns.lineplot(pair, x="position", y="value", ax=axis, legend=False, **look)
        axis.set(title=title, xlabel="place in the spectrum (0 = largest)", ylabel=unit, ylim=(0, None))
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    draw.legend_below(figure, axes[0], 3)
    return figure


def rotation_map(rotation: pd.DataFrame) -> Figure:
    """The mean principal angle of the leading directions by layer and module, for each step of the story."""
    pairs = _pairs(rotation[rotation["metric"].isin(ANGLES) & rotation["arm"].isin(["sft", "rl"])])
    figure, axes = plt.subplots(1, len(pairs), figsize=(WIDTH, 3.6), sharey=True, squeeze=False, layout="constrained")
    maps = [draw.by_module(rows) for rows, *_ in pairs]
    top = max(float(table.to_numpy().max()) for table in maps)
    for axis, table, (_, name, *_) in zip(axes[0], maps, pairs, strict=True):
        draw.module_map(axis, table, top, cbar=axis is axes[0, -1])
        axis.set_title(name)
    return figure


def turning(rotation: pd.DataFrame) -> Figure:
    """How far RL and the baselines turn the leading directions from each start, and whether nearer to the peak's."""
    data = rotation[rotation["metric"].isin(ANGLES)]
    data = data.assign(arm=data["arm"].astype(str), value=np.degrees(data["value"]))
    means = data.groupby(["seed", "arm", "from_step"])["value"].mean().reset_index()
    panels = [(means, "Turned since the start", "mean principal angle (°)")]
    if len(back := nearer_to_peak(means)):  # else every start is the peak itself
        panels.append((back, "Nearer (+) to the OOD peak", "mean principal angle, start - end (°)"))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False, layout="constrained")
    for axis, (rows, title, unit) in zip(axes[0], panels, strict=True):
        rows = rows[(rows["arm"] != "sft") & ~rows["arm"].str.endswith(" to peak")]
        for arm in in_order(rows["arm"])[::-1]:
            mean = bands(rows[rows["arm"] == arm].assign(n=0), shares=False)
            draw.bars(axis, mean, arm, "o-", label=label(arm))
        starts = rows["from_step"].unique()
        draw.step_axis(axis, starts, first=0.85 * starts.min(), last=1.15 * starts.max())
        axis.set(title=title, xlabel="SFT step from which it starts", ylabel=unit)
        axis.axhline(0, color=GREY, linestyle=":", linewidth=1.2)
    axes[0, 0].set_ylim(0, None)
    draw.legend_below(figure, axes[0, 0], 3)
    return figure


def surgery(measurements: pd.DataFrame) -> Figure:
    """Accuracy of the last checkpoint with the peak's singular values or vectors put back (C7, C8), OOD above ID."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    edits = accuracy[accuracy["stage"] == "surgery"]
    edits = edits.assign(arm=edits["arm"].astype(str).str.replace(r" draw \d+$", "", regex=True))
    edits = edits.assign(part=edits["arm"].str.split().str[0], leading=edits["arm"].str.fullmatch(r"\w+ top [\d.]+"))
    columns = 1 if edits["leading"].all() else 2
    figure, axes = plt.subplots(2, columns, figsize=(WIDTH, 8), squeeze=False, layout="constrained")
    sft = accuracy[accuracy["stage"] == "sft"]
    curves = sft.groupby(["split", "step"])["value"].mean()
    ends = ((curves["ood"].idxmax(), "OOD peak", "--"), (edits["step"].max(), "end of SFT", ":"))
    for split, (axis, *others) in zip(("ood", "id"), axes, strict=True):
        rows = edits[edits["split"] == split]
        start = sft[(sft["split"] == split) & (sft["step"] == edits["step"].max())]
        _leading_edits(axis, rows[rows["leading"]], start)
        axis.set(ylabel=f"{LABELS[split]} accuracy of the edited model")
        for other in others:
            _other_edits(other, rows[~rows["leading"]])
            other.set(xlabel=f"{LABELS[split]} accuracy")
        for step, name, dash in ends:
            look = {"color": GREY, "linestyle": dash, "linewidth": 1.2, "label": name}
            for draw_level in (axis.axhline, *(other.axvline for other in others)):
                draw_level(curves[split, step], **look)
        axis.set_ylim(bottom=0)
        for other in others:
            other.set_xlim(left=0)
    for axis, title in zip(axes[0], ("Leading directions, all projections", "Other edits"), strict=False):
        axis.set_title(title)
    axes[1, 0].set(xlabel="share of directions restored, leading first")
    draw.legend_below(figure, axes[0, 0], 3)
    return figure


def _leading_edits(axis: Axes, edits: pd.DataFrame, start: pd.DataFrame) -> None:
    """A curve a part over the share of directions, from the unedited model's accuracy (`start`) at 0."""
    edits = edits.assign(step=edits["arm"].str.split().str[2].astype(float))
    for part, (name, look) in EDITS.items():
        rows = (
            edits[edits["part"] == part].groupby(["step", "seed"], as_index=False).agg({"value": "mean", "n": "first"})
        )
        draw.line(axis, bands(pd.concat([start.assign(step=0.0)[rows.columns], rows])), part, name)
        axis.lines[-1].set(marker=look[0], linestyle=look[1:])
    draw.percent(axis.xaxis)
    draw.percent(axis.yaxis)


def _other_edits(axis: Axes, edits: pd.DataFrame) -> None:
    edits = edits.groupby(["arm", "part", "seed"], sort=False, as_index=False)[["value", "n"]].mean()  # over draws
    means = bands(edits)
    for y, row in enumerate(means.itertuples()):
        draw.point(axis, Estimate(row.mean, row.low, row.high, 0, ""), y, colour(row.part))
    axis.set_yticks(range(len(means)), means["arm"].str.replace(" layers", ", layers"))
    axis.set_ylim(len(means) - 0.5, -0.5)
    draw.percent(axis.xaxis)


def _pairs(data: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str, str]]:
    """The pairs of checkpoints that tell the story and are there, over all seeds: rows, name, colour, line."""
    sft = data["arm"] == "sft"
    end = int(data.loc[sft, "step"].max())
    pairs = (
        (data[sft & (data["from_step"] == 0) & (data["step"] < end)], "base to OOD peak", COLOURS["train"], "-"),
        (data[sft & (data["from_step"] > 0)], "OOD peak to end", COLOURS["sft"], "-"),
        (data[(data["arm"] == "rl") & (data["from_step"] == end)], "end to RL", COLOURS["rl"], "--"),
    )
    return [pair for pair in pairs if len(pair[0])]
