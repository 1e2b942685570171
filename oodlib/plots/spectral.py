"""The figures of stage 3: spectra, rotation and surgery."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from oodlib.analysis.stats import bands, nearer_to_peak
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, WIDTH, in_order, label
from oodlib.results import judged_by, peak_steps
from oodlib.tasks import Splits

ANGLES = ("angle_left", "angle_right")  # metrics of the table `rotation`: leading directions, radians
# The name of an edit, see `stages.edit_name`.
EDIT = (
    r"(?:(?P<null>\w+) for )?(?P<part>\w+), (?P<where>[\w ]+)(?:, (?P<end>top|tail) (?P<share>[\d.]+))?(?:, draw \d+)?$"
)
GROUPS = {  # of edits: what `where` matches
    "official edits": r"every matrix|.* and embeddings",
    "without embeddings": r"projections|layers \d+",
    "embeddings and head alone": r"embeddings",
    "rows of some words alone": r"numbers",
}
NULLS = {  # of edits: label, mark, colour, height below the edit's line
    "random": ("null: random turn", "s", "#7F7F7F", 0.07),
    "signs": ("null: random signs", "^", "#4B4B4B", 0.22),
    "noise": ("null: noise", "v", "#9E9E9E", 0.37),
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
        panels.append((back, "Nearer (+) to the peak", "mean principal angle, start - end (°)"))
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


ENDS = {"top": "leading", "tail": "trailing"}  # of the directions, as edits are named


def surgery(measurements: pd.DataFrame, splits: Splits, donor: int | None = None) -> Figure:
    """Accuracy of the last checkpoint with something of the donor's put back (C7, C8), edit by edit, nulls below each.

    donor: its step; None: each seed's peak.

    A panel for the headline, one for the trained split, and one for all other splits, if there are any. Of a run that
    is judged by reading (`results.judged_by`), that in place of accuracy.
    """
    metric = judged_by(measurements, splits)
    accuracy = measurements[measurements["metric"] == metric]
    edits, sft = (accuracy[accuracy["stage"] == stage] for stage in ("surgery", "sft"))
    donors = edits["seed"].map(peak_steps(measurements, splits)) if donor is None else donor
    edits = edits[edits["from_step"] == donors]
    if edits.empty:
        figure, axis = plt.subplots(figsize=(WIDTH, 0.8), layout="constrained")
        axis.text(0.5, 0.5, "No edit: nothing of an earlier checkpoint was put back.", ha="center", va="center")
        axis.set_axis_off()
        return figure
    sft = sft[sft["seed"].isin(edits["seed"])]
    peaks = edits[["seed", "from_step"]].drop_duplicates().rename(columns={"from_step": "step"})
    name = f"{splits.headline.label} peak" if donor is None else f"donor, step {donor}"
    ends = {
        name: (sft.merge(peaks).groupby("split", observed=True)["value"].mean(), "--"),
        "end of SFT": (sft[sft["step"] == sft["step"].max()].groupby("split", observed=True)["value"].mean(), ":"),
    }
    keys = ["part", "where", "end", "share"]
    edits = edits.join(edits["arm"].astype(str).str.extract(EDIT)).fillna({"null": "", "end": "", "share": ""})
    draws = edits.groupby([*keys, "null", "split", "seed"], sort=False, as_index=False, observed=True)
    edits = bands(draws[["value", "n"]].mean())
    rows = _rows(edits[keys].drop_duplicates())
    lines = {edit: y for y, (edit, _) in enumerate(rows)}
    edits = edits.assign(y=[lines[edit] for edit in edits[keys].itertuples(index=False, name=None)])

    panels = [[splits.headline], [splits.trained], list(splits.others)][: 2 + bool(splits.others)]
    size = (WIDTH, 0.32 * len(rows) + 1.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for axis, shown in zip(axes, panels, strict=True):
        alone = len(shown) == 1
        for i, split in enumerate(shown):
            for name, (values, dash) in ends.items():
                look = {"color": GREY if alone else split.colour, "linestyle": dash, "linewidth": 1.3}
                axis.axvline(values[split.name], label=name, **look)
            data = edits[edits["split"] == split.name]
            for null, (name, mark, grey, below) in NULLS.items() if alone else ():
                _marks(axis, data[data["null"] == null], grey, mark, below, name, 4)
            below = -0.18 if alone else 0.7 * (i + 0.5) / len(shown) - 0.35
            _marks(axis, data[data["null"] == ""], split.colour, "o", below, f"edit: {split.label}", 6)
        axis.set(title=shown[0].label if alone else "other splits", xlabel=metric.replace("_", " "))
        axis.set_xlim(left=-0.02)
        draw.percent(axis.xaxis)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.grid(False, axis="y")
        axis.tick_params(axis="y", length=0)
        for y, (edit, _) in enumerate(rows):
            axis.axhline(y - 0.5, color="#E6E6E6" if edit else GREY, linewidth=0.8, zorder=0)
    axes[0].set_yticks(range(len(rows)), [name for _, name in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for (edit, _), text in zip(rows, axes[0].get_yticklabels(), strict=True):
        text.set_fontweight("normal" if edit else "bold")
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    names = sorted(handles, key=lambda name: (not name.startswith("null"), not name.startswith("edit")))
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=4)
    return figure


def _rows(edits: pd.DataFrame) -> list[tuple[tuple[str, ...] | None, str]]:
    """The lines of the surgery figure: each group's heading (None), and its edits (part, where, end, share)."""
    edits = edits.iloc[edits["part"].map(["whole", "vectors", "values"].index).argsort(kind="stable")]
    rows = []
    for group, pattern in GROUPS.items():
        inside = edits[edits["where"].str.fullmatch(pattern)]
        rows += [(None, group)] * (len(inside) > 0)
        for edit in inside.itertuples(index=False, name=None):
            part, where, end, share = edit
            if part == "whole":
                layers = where.split()[1] if where.startswith("layers") else ""
                name = f"first {layers} layers, whole".replace(" 1 layers", " layer") if layers else "whole"
            else:
                name = f"{part}, " + (f"{ENDS[end]} {float(share):.0%}" if end else "all")
            rows.append((edit, name))
    return rows


def _marks(axis: Axes, data: pd.DataFrame, hue: str, mark: str, below: float, name: str, size: float) -> None:
    """Marks with intervals in the lines `y` of a table, a little below them."""
    if len(data):
        ends = [data["mean"] - data["low"].clip(lower=0), data["high"] - data["mean"]]
        look = {"color": hue, "markersize": size, "elinewidth": 1.3, "label": name}
        axis.errorbar(data["mean"], data["y"] + below, xerr=ends, fmt=mark, **look)


def _pairs(data: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str, str]]:
    """The pairs of checkpoints that tell the story and are there, over all seeds: rows, name, colour, line."""
    sft = data["arm"] == "sft"
    end = int(data.loc[sft, "step"].max())
    pairs = (
        (data[sft & (data["from_step"] == 0) & (data["step"] < end)], "base to peak", COLOURS["train"], "-"),
        (data[sft & (data["from_step"] > 0)], "peak to end", COLOURS["sft"], "-"),
        (data[(data["arm"] == "rl") & (data["from_step"] == end)], "end to RL", COLOURS["rl"], "--"),
    )
    return [pair for pair in pairs if len(pair[0])]
