"""The figures of the sweep: where RL heals more than its controls, and what to do instead. From its table alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oodlib.analysis.healing import CONTROLS, Effect, turned, wide
from oodlib.analysis.stats import bands, over_seeds
from oodlib.plots.style import COLOURS, NAMES, WIDTH, draw_line, mark_peak, percent, sft_rows, step_axis

START, IDLE = "#555555", "#A9ADB1"  # RL less its own start; where RL did not learn
ORDER = ("start", "rl", *CONTROLS, "interpolation_peak")
# What a verdict looks like: colour and mark. Not the colours of arms and splits, and each mark another.
HEAL_LOOKS = {
    "RL heals more": ("#0B2A5B", "^"),
    "level with a control": ("#7F9CC9", "s"),
    "a control heals more": ("#4E342E", "v"),
    "RL does not heal": ("#A1887F", "D"),
    "undecided": ("#5F6B78", "o"),
    "RL did not learn": (IDLE, "X"),
    "nothing lost": ("#DDDDDD", "P"),
}
# Of remedies that are no arm elsewhere; not the colours of arms and splits, and each has its mark besides.
REMEDY_COLOURS = ("#332288", "#44AA99", "#882255", "#999933", "#EE3377", "#5B6C8F", "#661100", "#6699CC")
ARMS_TOO = {"averaging": COLOURS["averaging"], "interpolation": COLOURS["interpolation_base"]}


def _colour(arm: str) -> str:
    return COLOURS["sft"] if arm == "start" else COLOURS[arm]


def _name(arm: str) -> str:
    return NAMES["sft"] if arm == "start" else NAMES[arm]


def forest(found: list[Effect]) -> Figure:
    """RL against the best control (filled) and against its own start (hollow), in points of OOD accuracy, with 95 %."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.48 * len(found) + 1.8), layout="constrained")
    for row, f in enumerate(found):
        colour, mark = HEAL_LOOKS[f.verdict]
        looks = (START, "o", "none"), (colour, mark, colour)
        for estimate, shift, (colour, mark, fill) in zip((f.gain, f.effect), (-0.14, 0.14), looks, strict=True):
            low, high = 100 * estimate.low, 100 * estimate.high
            axis.plot([low, high], [row + shift] * 2, color=colour, linewidth=2)
            axis.plot(100 * estimate.value, row + shift, mark, color=colour, markerfacecolor=fill, markersize=8)
        axis.text(
            1.02, row, NAMES[f.best].split(": ")[-1], transform=axis.get_yaxis_transform(), va="center", fontsize=10
        )
    axis.text(
        1.02, -0.95, "best control", transform=axis.get_yaxis_transform(), va="center", fontsize=10, weight="bold"
    )
    axis.axvline(0, color="#555555", linewidth=1)
    axis.set_yticks(range(len(found)), [f"{f.condition}, from step {f.start} (n = {f.effect.n})" for f in found])
    axis.set(ylim=(len(found) - 0.4, -0.8), xlabel="difference in OOD accuracy within three tries, points (95 %)")
    axis.set_title("Does RL heal more than its best control?")
    looks = {v: look for v, look in HEAL_LOOKS.items() if v in {f.verdict for f in found}}
    handles = [
        Line2D([], [], marker="o", color=START, markerfacecolor="none", markersize=8, label="RL - its own start")
    ]
    handles += [
        Line2D([], [], marker=mark, color=colour, markersize=8, label=f"RL - best control: {v}")
        for v, (colour, mark) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def arms(table: pd.DataFrame, condition: str, metric: str = "accuracy") -> Figure:
    """ID and OOD accuracy of the start and of every arm from there, a column a start; dots are seeds."""
    ood, held = wide(table, "ood", metric), wide(table, "id", metric)
    starts = sorted(ood.loc[condition].index.get_level_values("from_step").unique())
    figure, axes = plt.subplots(2, len(starts), figsize=(WIDTH, 7), squeeze=False, layout="constrained")
    for line, (split, data) in zip(axes, (("OOD", ood), ("ID", held)), strict=True):
        for axis, start in zip(line, starts, strict=True):
            rows = data.loc[condition].xs(start, level="from_step").dropna(axis=1, how="all")
            shown = [a for a in ORDER if a in rows]
            for y, arm in enumerate(shown):
                e = over_seeds(rows[arm])
                axis.plot(rows[arm], [y] * len(rows), "o", color=_colour(arm), alpha=0.3, markersize=4)
                if len(rows) > 1:
                    axis.plot([e.low, e.high], [y, y], color=_colour(arm), linewidth=3)
                axis.plot(e.value, y, "D", color=_colour(arm), markersize=8)
            axis.axvline(rows["start"].mean(), color=COLOURS["sft"], linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(shown)), [_name(a) for a in shown] if axis is line[0] else [""] * len(shown))
            axis.set(
                title=f"{split}, from step {start}", xlabel="accuracy within three tries", ylim=(len(shown) - 0.5, -0.5)
            )
            percent(axis.xaxis)
    return figure


def healing_map(table: pd.DataFrame, found: list[Effect]) -> Figure:
    """RL less SFT continued by OOD accuracy and ID headroom at the start: a panel a condition, a mark a seed and start.

    Where RL did not learn (by `found`) is left out. ValueError if that leaves nothing.
    """
    ood, held = wide(table, "ood"), wide(table, "id")
    frame = ood.assign(effect=100 * (ood["rl"] - ood["sft_continued"]), headroom=1 - held["start"])
    frame = frame[frame["effect"].notna()].reset_index("seed")
    learnt = [(f.condition, f.start) for f in found if f.verdict != "RL did not learn"]
    places = [place for place in learnt if place in frame.index]
    if not places:
        raise ValueError("no start from which RL learnt and SFT was continued, so there is no map to draw")
    edge = max(1.0, float(frame.loc[frame.index.isin(places), "effect"].abs().max()))
    conditions = list(dict.fromkeys(condition for condition, _ in places))
    columns = min(len(conditions), 2)
    rows = -(-len(conditions) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 2.5 * rows + 1.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(conditions) :]:
        axis.set_axis_off()
    marks = dict(zip(sorted({start for _, start in places}), "o^sDv", strict=False))
    look = {"cmap": "PiYG", "vmin": -edge, "vmax": edge, "s": 70, "edgecolors": "#333333", "linewidths": 0.6}
    for condition, start in places:
        axis, mine = axes.flat[conditions.index(condition)], frame.loc[[(condition, start)]]
        shown = axis.scatter(mine["start"], mine["headroom"], c=mine["effect"], marker=marks[start], **look)
        axis.set_title(condition)
    for axis in axes.flat:
        for one in (axis.xaxis, axis.yaxis):
            percent(one)
    for axis in axes[-1]:
        axis.set_xlabel("OOD accuracy at the start")
    for axis in axes[:, 0]:
        axis.set_ylabel("ID headroom at the start\n(1 - accuracy)")
    figure.colorbar(shown, ax=axes, label="RL - SFT continued,\npoints of OOD accuracy")
    handles = [
        Line2D([], [], marker=mark, ls="", ms=8, color="white", mec="#333333", label=f"from step {start}")
        for start, mark in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def by_try(table: pd.DataFrame, conditions: list[str], start: int) -> Figure:
    """OOD accuracy by the number of tries allowed, of the start, RL and the trained controls; a panel a condition."""
    columns = min(len(conditions), 3 if len(conditions) != 4 else 2)
    rows = -(-len(conditions) // columns)
    size = (min(WIDTH, 5 * columns), 3.2 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(conditions) :]:
        axis.set_axis_off()
    tries = sorted({int(m.split("@")[1]) for m in table["metric"].unique() if "@" in m})
    for axis, condition in zip(axes.flat, conditions, strict=False):
        mine = [wide(table, "ood", f"accuracy@{k}").loc[condition].xs(start, level="from_step") for k in tries]
        for arm in ("start", "sft_continued", "rejection_sampling", "rl"):
            if arm not in mine[0] or mine[0][arm].isna().all():
                continue
            found = [over_seeds(rows[arm].dropna()) for rows in mine]
            axis.plot(tries, [e.value for e in found], "o-", color=_colour(arm), label=_name(arm), markersize=5)
            axis.fill_between(
                tries, [e.low for e in found], [e.high for e in found], color=_colour(arm), alpha=0.15, linewidth=0
            )
        axis.set(title=f"{condition}, from step {start}", xlabel="tries allowed", xticks=tries, ylim=(0, None))
        percent(axis.yaxis)
    for axis in axes[:, 0]:
        axis.set_ylabel("OOD accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def advantage_spread(table: pd.DataFrame, found: list[Effect]) -> Figure:
    """C6, a row a condition and start: how returns were spread in RL's first tenth, how skewed, and what RL did there.

    Left the quantiles of the return less its group's mean, means over seeds; in the middle the skewness of the
    advantages, right RL less its start, both with 95 % intervals over seeds. Where RL did not learn (by `found`), grey.
    """
    idle = {(f.condition, f.start) for f in found if f.verdict == "RL did not learn"}
    mine = table[(table["split"] == "rollouts") & (table["arm"] == "rl")]
    place = ["condition", "from_step"]
    wanted = mine.pivot_table(index=place, columns="metric", values="value")
    skewness = mine[mine["metric"] == "advantage_skewness"].groupby(place)["value"]
    ood = wide(table, "ood")
    gain = (100 * (ood["rl"] - ood["start"])).groupby(level=place)
    order = list(table["condition"].unique())
    keys = sorted((k for k in wanted.index if k in gain.groups), key=lambda k: (order.index(k[0]), k[1]))
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 0.42 * len(keys) + 1.8), sharey=True, layout="constrained")
    for y, key in enumerate(keys):
        q, colour = wanted.loc[key], IDLE if key in idle else COLOURS["rl"]
        axes[0].plot([q["centred_q5"], q["centred_q95"]], [y, y], color=colour, linewidth=1.5)
        axes[0].plot([q["centred_q25"], q["centred_q75"]], [y, y], color=colour, linewidth=6, alpha=0.5)
        axes[0].plot(q["centred_q50"], y, "|", color="k", markersize=12)
        for axis, values in ((axes[1], skewness), (axes[2], gain)):
            e = over_seeds(values.get_group(key).dropna())
            axis.plot([e.low, e.high], [y, y], color=colour, linewidth=2)
            axis.plot(e.value, y, "o", color=colour)
    labels = [f"{r}, from {t}" + ("\n(RL did not learn)" if (r, t) in idle else "") for r, t in keys]
    axes[0].set_yticks(range(len(keys)), labels)
    axes[0].set(ylim=(len(keys) - 0.5, -0.5), xlabel="return less its group's mean:\nmedian, middle half, 5 to 95 %")
    axes[1].set(xlabel="skewness of the\nadvantages (95 %)")
    axes[2].set(xlabel="RL - start, points of\nOOD accuracy (95 %)")
    for axis, title in zip(axes, ("Spread of returns", "Skewness", "What RL did"), strict=True):
        axis.set_title(title)
    for axis in axes[1:]:
        axis.axvline(0, color="#555555", linewidth=1)
    return figure


def turning(table: pd.DataFrame, condition: str) -> Figure:
    """How far each arm turned the leading singular vectors, and whether towards the OOD peak's."""
    data = turned(table)
    data = data[data["condition"] == condition]
    shown = [a for a in ORDER if a in set(data["arm"])]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.5 * len(shown) + 2), sharey=True, layout="constrained")
    titles = {"angle": "Turned since the start", "towards_peak": "Nearer (+) to the OOD peak"}
    starts = sorted(data["from_step"].unique())
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for i, start in enumerate(starts):
            for y, arm in enumerate(shown):
                rows = data[(data["arm"] == arm) & (data["from_step"] == start)][column].dropna()
                if rows.empty:
                    continue
                e, height = over_seeds(np.degrees(rows)), y + 0.22 * (i - (len(starts) - 1) / 2)
                fill = COLOURS[arm] if i else "white"
                axis.plot([e.low, e.high], [height] * 2, color=COLOURS[arm], linewidth=2)
                axis.plot(e.value, height, "o", color=COLOURS[arm], markerfacecolor=fill, markersize=7)
        axis.axvline(0, color="#555555", linewidth=1)
        axis.set(title=title, xlabel="mean principal angle,\nleading quarter (°)")
    axes[0].set_yticks(range(len(shown)), [NAMES[a] for a in shown])
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    handles = [
        Line2D([], [], marker="o", color="#555555", markerfacecolor="#555555" if i else "white", label=f"from step {t}")
        for i, t in enumerate(starts)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


# ---- remedies ------------------------------------------------------------------------------------------


def pareto(remedies: pd.DataFrame, peak: pd.DataFrame | None = None) -> Figure:
    """ID against OOD accuracy at the end of SFT, a mark a remedy, with 95 % intervals over seeds.

    `remedies` has the columns remedy, seed, id, ood; `peak` the same for plain SFT's OOD peak.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    _remedies(axis, remedies, "id")
    if peak is not None:
        _cross(axis, peak, "id", COLOURS["sft"], "*", "plain SFT at its OOD peak\n(oracle)", full=False)
    axis.set(xlabel="ID accuracy within three tries", title="What each remedy keeps, and costs")
    percent(axis.xaxis)
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def angles(remedies: pd.DataFrame) -> Figure:
    """By how much SFT turned the leading directions from the base, against OOD accuracy at its end.

    `remedies` has the columns remedy, seed, angle (degrees), ood; those without an angle are left out. Marks as in
    `pareto`.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    _remedies(axis, remedies, "angle")
    axis.set(xlabel="mean principal angle from the base, leading quarter (°)", title="Less turned, less forgotten?")
    axis.set_xlim(left=0)  # no angle is below, even where an interval is
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def _remedies(axis: Axes, remedies: pd.DataFrame, x: str) -> None:
    """A mark a remedy, means over seeds with 95 % intervals: the column `x` against OOD accuracy.

    The first half of the remedies has large open marks, the other half small full ones, so that none hides another.
    """
    names = list(remedies["remedy"].unique())
    others = [name for name in names if name != "plain SFT" and name not in ARMS_TOO]
    colours = {name: REMEDY_COLOURS[i % len(REMEDY_COLOURS)] for i, name in enumerate(others)} | ARMS_TOO
    for i, name in enumerate(names):
        rows = remedies[remedies["remedy"] == name].dropna(subset=[x])
        if len(rows):
            look = colours.get(name, COLOURS["sft"]), "oDs^vPX<>hd"[i % 11]
            _cross(axis, rows, x, *look, name, full=i > len(names) // 2 - 1)
    axis.set_ylabel("OOD accuracy within three tries")
    percent(axis.yaxis)
    axis.set_ylim(bottom=0)


def _cross(axis: Axes, rows: pd.DataFrame, column: str, colour: str, marker: str, label: str, full: bool) -> None:
    x, y = over_seeds(rows[column]), over_seeds(rows["ood"])
    axis.plot([x.low, x.high], [y.value] * 2, color=colour, linewidth=1.2)
    axis.plot([x.value] * 2, [y.low, y.high], color=colour, linewidth=1.2)
    look = {"markersize": 7} if full else {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 1.8}
    axis.plot(x.value, y.value, marker, color=colour, label=label, **look)


def best_start(remedies: pd.DataFrame) -> Figure:
    """Accuracies before and after RL from the end of each remedy; columns remedy, seed, id, ood, rl_id, rl_ood."""
    names = [n for n in remedies["remedy"].unique() if remedies.loc[remedies["remedy"] == n, "rl_ood"].notna().any()]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.5 * len(names) + 2), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("ood", "id"), strict=True):
        for y, name in enumerate(names):
            rows = remedies[remedies["remedy"] == name].dropna(subset=["rl_ood"])
            before, after = over_seeds(rows[split]), over_seeds(rows[f"rl_{split}"])
            axis.plot([before.value, after.value], [y, y], color="#BBBBBB", linewidth=1)
            for e, shift, colour, label in ((before, 0.1, COLOURS["sft"], "start"), (after, -0.1, COLOURS["rl"], "rl")):
                axis.plot([e.low, e.high], [y + shift] * 2, color=colour, linewidth=2)
                axis.plot(e.value, y + shift, "o", color=colour, label=_name(label) if y == 0 else None, markersize=7)
        axis.set(title=f"{NAMES[split]} accuracy", xlabel="accuracy within three tries", ylim=(len(names) - 0.5, -0.5))
        percent(axis.xaxis)
    axes[0].set_yticks(range(len(names)), names)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def beside(runs: dict[str, pd.DataFrame]) -> Figure:
    """Ways of SFT side by side, a column each: accuracy, and how far the weights are turned, against the step.

    runs: measurements by the name of the way, of the same checkpoints.
    """
    figure, axes = plt.subplots(2, len(runs), figsize=(WIDTH, 6.2), sharex=True, sharey="row", layout="constrained")
    for (upper, lower), (name, measurements) in zip(axes.T, runs.items(), strict=True):
        accuracy = bands(sft_rows(measurements, "accuracy"))
        for split in ("id", "ood"):
            draw_line(upper, accuracy[accuracy["split"] == split], split)
        turning = bands(sft_rows(measurements, "rotation"), shares=False)
        turning[["mean", "low", "high"]] = np.degrees(turning[["mean", "low", "high"]])
        draw_line(lower, turning, "sft", "all projections")
        ood = accuracy[accuracy["split"] == "ood"].sort_values("step")
        peak = ood.loc[ood["mean"].idxmax()]
        step_axis(lower, ood["step"])
        mark_peak(upper, peak["step"], f"OOD peak: {peak['mean']:.0%}\nat step {peak['step']:.0f}")
        upper.set(title=name, ylim=(0, 1))
        percent(upper.yaxis)
    axes[0, 0].set(ylabel="accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    axes[1, 0].set(ylabel="mean principal angle\nfrom the base (°)", ylim=(0, None))
    return figure
