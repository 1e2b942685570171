"""The figures of the campaign: where RL heals more than its controls, and what to do instead. From its table alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oodlib.healing import CONTROLS, Effect, turned, wide
from oodlib.plotting import COLOURS, NAMES, WIDTH, draw_line, mark_peak, percent, sft_rows, step_axis
from oodlib.stats import bands, over_seeds

ORDER = ("start", "rl", *CONTROLS, "interpolation_peak")
HEAL_COLOURS = {
    "RL heals more": COLOURS["rl"],
    "as much as a control": COLOURS["paper"],
    "a control heals more": COLOURS["sft_continued"],
    "RL does not heal": COLOURS["interpolation_base"],
    "undecided": "#7F7F7F",
    "RL did not learn": "#BBBBBB",
    "nothing lost": "#DDDDDD",
}
# Not the colours of arms and splits: remedies are read by their marks.
REMEDY_COLOURS = ("#332288", "#44AA99", "#882255", "#999933", "#CC6677", "#AA4499", "#A0522D", "#7F7F7F")


def _colour(arm: str) -> str:
    return COLOURS["sft"] if arm == "start" else COLOURS[arm]


def _name(arm: str) -> str:
    return NAMES["sft"] if arm == "start" else NAMES[arm]


def forest(found: list[Effect]) -> Figure:
    """RL against the best control (filled) and against its own start (hollow), in points of OOD accuracy, with 95 %."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.48 * len(found) + 1.8), layout="constrained")
    for row, f in enumerate(found):
        for estimate, shift, fill in ((f.gain, -0.14, "none"), (f.effect, 0.14, HEAL_COLOURS[f.verdict])):
            colour = "#555555" if fill == "none" else fill
            low, high = 100 * estimate.low, 100 * estimate.high
            axis.plot([low, high], [row + shift] * 2, color=colour, linewidth=2)
            axis.plot(100 * estimate.value, row + shift, "o", color=colour, markerfacecolor=fill, markersize=7)
        axis.text(
            1.02, row, NAMES[f.best].split(": ")[-1], transform=axis.get_yaxis_transform(), va="center", fontsize=10
        )
    axis.text(
        1.02, -0.95, "best control", transform=axis.get_yaxis_transform(), va="center", fontsize=10, weight="bold"
    )
    axis.axvline(0, color="#555555", linewidth=1)
    axis.set_yticks(range(len(found)), [f"{f.regime}, from step {f.start} (n = {f.effect.n})" for f in found])
    axis.set(ylim=(len(found) - 0.4, -0.8), xlabel="difference in OOD accuracy, points (95 %)")
    axis.set_title("Does RL heal more than its best control?")
    verdicts = [v for v in HEAL_COLOURS if v in {f.verdict for f in found}]
    handles = [Line2D([], [], marker="o", color=HEAL_COLOURS[v], label=f"RL - best control: {v}") for v in verdicts]
    handles.append(Line2D([], [], marker="o", color="#555555", markerfacecolor="none", label="RL - its own start"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def arms(table: pd.DataFrame, regime: str, metric: str = "accuracy") -> Figure:
    """ID and OOD accuracy of the start and of every arm from there, a column a start; dots are seeds."""
    ood, held = wide(table, "ood", metric), wide(table, "id", metric)
    starts = sorted(ood.loc[regime].index.get_level_values("from_step").unique())
    figure, axes = plt.subplots(2, len(starts), figsize=(WIDTH, 7), squeeze=False, layout="constrained")
    for line, (split, data) in zip(axes, (("OOD", ood), ("ID", held)), strict=True):
        for axis, start in zip(line, starts, strict=True):
            rows = data.loc[regime].xs(start, level="from_step").dropna(axis=1, how="all")
            shown = [a for a in ORDER if a in rows]
            for y, arm in enumerate(shown):
                e = over_seeds(rows[arm])
                axis.plot(rows[arm], [y] * len(rows), "o", color=_colour(arm), alpha=0.3, markersize=4)
                if len(rows) > 1:
                    axis.plot([e.low, e.high], [y, y], color=_colour(arm), linewidth=3)
                axis.plot(e.value, y, "D", color=_colour(arm), markersize=8)
            axis.axvline(rows["start"].mean(), color=COLOURS["sft"], linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(shown)), [_name(a) for a in shown] if axis is line[0] else [""] * len(shown))
            axis.set(title=f"{split}, from step {start}", xlabel="accuracy on all hands", ylim=(len(shown) - 0.5, -0.5))
            percent(axis.xaxis)
    return figure


def healing_map(table: pd.DataFrame, several: dict[str, bool]) -> Figure:
    """Effect by OOD accuracy and headroom at the start; circles: one try in RL, triangles: several.

    Regimes that share a start stand side by side, 0.35 points apart.
    """
    ood, held = wide(table, "ood"), wide(table, "id")
    frame = ood.assign(effect=100 * (ood["rl"] - ood["sft_continued"]), headroom=1 - held["start"]).reset_index()
    frame = frame.dropna(subset=["effect"])
    alike = frame.groupby(["seed", "from_step", "headroom"]).cumcount()  # regimes that share a start: side by side
    frame["start"] += 0.0035 * alike
    edge = max(1.0, float(frame["effect"].abs().max()))
    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for many, marker in ((False, "o"), (True, "^")):
        mine = frame[frame["regime"].map(several) == many]
        if len(mine):
            label = "several tries in RL" if many else "one try in RL"
            shown = axis.scatter(
                mine["start"],
                mine["headroom"],
                c=mine["effect"],
                cmap="PiYG",
                vmin=-edge,
                vmax=edge,
                marker=marker,
                s=75,
                edgecolors="#333333",
                linewidths=0.6,
            )
            axis.scatter([], [], marker=marker, s=75, color="white", edgecolors="#333333", label=label)
    figure.colorbar(shown, ax=axis, label="RL - SFT continued, points of OOD accuracy")
    axis.set(xlabel="OOD accuracy at the start", ylabel="ID headroom at the start (1 - accuracy)")
    axis.set_title("Where RL beats continued SFT (green); a mark is a seed and a start")
    for one in (axis.xaxis, axis.yaxis):
        percent(one)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def by_try(table: pd.DataFrame, regimes: list[str], start: int) -> Figure:
    """OOD accuracy by the number of tries allowed, of the start, RL and the trained controls; a panel a regime."""
    columns = min(len(regimes), 3 if len(regimes) != 4 else 2)
    rows = -(-len(regimes) // columns)
    size = (min(WIDTH, 5 * columns), 3.2 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(regimes) :]:
        axis.set_axis_off()
    tries = sorted({int(m.split("@")[1]) for m in table["metric"].unique() if "@" in m})
    for axis, regime in zip(axes.flat, regimes, strict=False):
        mine = [wide(table, "ood", f"accuracy@{k}").loc[regime].xs(start, level="from_step") for k in tries]
        for arm in ("start", "sft_continued", "rejection_sampling", "rl"):
            if arm not in mine[0] or mine[0][arm].isna().all():
                continue
            found = [over_seeds(rows[arm].dropna()) for rows in mine]
            axis.plot(tries, [e.value for e in found], "o-", color=_colour(arm), label=_name(arm), markersize=5)
            axis.fill_between(
                tries, [e.low for e in found], [e.high for e in found], color=_colour(arm), alpha=0.15, linewidth=0
            )
        axis.set(title=f"{regime}, from step {start}", xlabel="tries allowed", xticks=tries, ylim=(0, None))
        percent(axis.yaxis)
    for axis in axes[:, 0]:
        axis.set_ylabel("OOD accuracy on all hands")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def advantage_spread(table: pd.DataFrame) -> Figure:
    """How returns were spread in RL's first tenth, from each start (quantiles), beside what RL did there (C6)."""
    mine = table[(table["split"] == "rollouts") & (table["arm"] == "rl")]
    wanted = mine.pivot_table(index=["regime", "from_step"], columns="metric", values="value")
    ood = wide(table, "ood")
    gain = (ood["rl"] - ood["start"]).groupby(level=["regime", "from_step"])
    keys = [k for k in wanted.index if k in gain.groups]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.42 * len(keys) + 1.8), sharey=True, layout="constrained")
    where = axes[0].get_yaxis_transform()
    axes[0].text(1.16, -0.8, "skewness", transform=where, va="center", ha="right", weight="bold")
    for y, key in enumerate(keys):
        q = wanted.loc[key]
        axes[0].plot([q["centred_q5"], q["centred_q95"]], [y, y], color=COLOURS["rl"], linewidth=1.5)
        axes[0].plot([q["centred_q25"], q["centred_q75"]], [y, y], color=COLOURS["rl"], linewidth=6, alpha=0.5)
        axes[0].plot(q["centred_q50"], y, "|", color="k", markersize=12)
        axes[0].text(1.16, y, f"{q['advantage_skewness']:+.2f}", transform=where, va="center", ha="right")
        e = over_seeds(gain.get_group(key).dropna())
        axes[1].plot([100 * e.low, 100 * e.high], [y, y], color=COLOURS["rl"], linewidth=2)
        axes[1].plot(100 * e.value, y, "o", color=COLOURS["rl"])
    axes[0].set_yticks(range(len(keys)), [f"{r}, from {t}" for r, t in keys])
    axes[0].set(ylim=(len(keys) - 0.5, -0.5), xlabel="return less its group's mean:\nmedian, middle half, 5 to 95 %")
    axes[1].axvline(0, color="#555555", linewidth=1)
    axes[1].set(xlabel="RL - start,\npoints of OOD accuracy (95 %)")
    axes[0].set_title("How returns were spread")
    axes[1].set_title("What RL did")
    return figure


def turning(table: pd.DataFrame, regime: str) -> Figure:
    """How far each arm turned the leading singular vectors, and whether towards the OOD peak's."""
    data = turned(table)
    data = data[data["regime"] == regime]
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

    `remedies` has the columns remedy, seed, id, ood; `peak` the same for plain SFT's OOD peak. The first half of the
    remedies has large open marks, the other half small full ones, so that none hides another.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    names = list(remedies["remedy"].unique())
    colours = {n: REMEDY_COLOURS[i % len(REMEDY_COLOURS)] for i, n in enumerate(n for n in names if n != "plain SFT")}
    for i, name in enumerate(names):
        colour, full = colours.get(name, COLOURS["sft"]), i > len(names) // 2 - 1
        _cross(axis, remedies[remedies["remedy"] == name], colour, "oDs^vPX<>hd"[i % 11], name, full)
    if peak is not None:
        _cross(axis, peak, COLOURS["sft"], "*", "plain SFT at its OOD peak\n(oracle)", full=False)
    axis.set(
        xlabel="ID accuracy, all hands", ylabel="OOD accuracy, all hands", title="What each remedy keeps, and costs"
    )
    for one in (axis.xaxis, axis.yaxis):
        percent(one)
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def _cross(axis: Axes, rows: pd.DataFrame, colour: str, marker: str, label: str, full: bool) -> None:
    x, y = over_seeds(rows["id"]), over_seeds(rows["ood"])
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
        axis.set(title=f"{NAMES[split]} accuracy", xlabel="accuracy on all hands", ylim=(len(names) - 0.5, -0.5))
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
