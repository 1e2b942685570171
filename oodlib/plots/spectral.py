"""The figures about weights: spectra, rotation and surgery. Drawn from a run's tables alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from oodlib.analysis.stats import bands, nearer_to_peak, over_seeds
from oodlib.plots.style import COLOURS, MODULE_ORDER, NAMES, WIDTH, draw_line, step_axis, steps_above


def value_change(rotation: pd.DataFrame) -> Figure:
    """Relative change of singular values, and angle of singular vectors, against the index, along the run."""
    kinds = {
        "value_change": "relative change",
        "direction": "angle (°)",
    }
    data = rotation[rotation["arm"].isin(["sft", "rl"])].copy()
    data["metric"] = data["metric"].astype(str)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    for axis, (kind, label) in zip(axes, kinds.items(), strict=True):
        mine = data[data["metric"].str.startswith(kind)]
        sizes = mine.groupby(["layer", "module"], observed=True)["index"].transform("max")
        mine = mine.assign(position=((mine["index"] + 0.5) / (sizes + 1) * 20).astype(int) / 20 + 0.025)
        if kind == "direction":
            mine = mine.assign(value=np.degrees(mine["value"]))
        for one, name, colour, dash in _pairs(mine):
            curve = one.groupby("position")["value"].quantile([0.25, 0.5, 0.75]).unstack()
            axis.plot(curve.index, curve[0.5], dash, color=colour, label=name)
            axis.fill_between(curve.index, curve[0.25], curve[0.75], color=colour, alpha=0.12, linewidth=0)
        axis.set(xlabel="place in the spectrum (0 = largest)", ylabel=label, ylim=(0, None))
    axes[0].set_title("Singular values")
    axes[1].set_title("Singular vectors")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def rotation_map(rotation: pd.DataFrame) -> Figure:
    """The mean principal angle of the leading directions by layer and module, for each step of the story."""
    data = rotation[rotation["metric"].isin(["angle_left", "angle_right"]) & rotation["arm"].isin(["sft", "rl"])]
    data = data.assign(value=np.degrees(data["value"]))
    pairs = _pairs(data)
    figure, axes = plt.subplots(1, len(pairs), figsize=(WIDTH, 3.6), sharey=True, layout="constrained")
    tables = []
    for mine, _, _, _ in pairs:
        table = mine.pivot_table(index="module", columns="layer", values="value", observed=True)
        table.index = table.index.astype(str)
        tables.append(table.reindex([m for m in MODULE_ORDER if m in table.index]))
    top = max(float(t.to_numpy().max()) for t in tables)
    for axis, table, (_, name, _, _) in zip(np.atleast_1d(axes), tables, pairs, strict=True):
        last = axis is np.atleast_1d(axes)[-1]
        sns.heatmap(
            table, ax=axis, cmap="viridis", vmin=0, vmax=top, annot=table.shape[1] <= 6, fmt=".1f", cbar=last,
            cbar_kws={"label": "mean principal angle (°)"},
        )  # fmt: skip
        axis.set(title=name, xlabel="layer", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    return figure


def turning(rotation: pd.DataFrame) -> Figure:
    """How far RL and the controls turn the leading directions from each start, and whether nearer to the peak's."""
    means, back = mean_angles(rotation), turned_back(rotation)
    panels = [(means, "Turned since the start", "mean principal angle (°)")]
    if len(back):  # else every start is the peak itself
        panels.append((back, "Nearer (+) to the OOD peak", "mean principal angle, start - end (°)"))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False, layout="constrained")
    for axis, (rows, title, label) in zip(axes[0], panels, strict=True):
        rows = rows[rows["arm"].isin(["sft_continued", "rejection_sampling", "rl"])]
        for arm, mine in rows.groupby("arm"):
            found = bands(mine[["arm", "from_step", "seed", "value"]].assign(n=0), shares=False)
            found = found.sort_values("from_step")
            axis.errorbar(
                found["from_step"], found["mean"], [found["mean"] - found["low"], found["high"] - found["mean"]],
                fmt="o-", color=COLOURS[arm], label=NAMES[arm], capsize=3,
            )  # fmt: skip
        starts = rows["from_step"].unique()
        step_axis(axis, starts, first=0.85 * starts.min(), last=1.15 * starts.max())
        axis.set(title=title, xlabel="SFT step from which it starts", ylabel=label)
        axis.axhline(0, color="#555555", linestyle=":", linewidth=1.2)
    axes[0, 0].set_ylim(0, None)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def mean_angles(rotation: pd.DataFrame) -> pd.DataFrame:
    """seed, arm, from_step, value: the mean principal angle (degrees) over matrices and sides."""
    data = rotation[rotation["metric"].isin(["angle_left", "angle_right"])]
    data = data.assign(arm=data["arm"].astype(str), value=np.degrees(data["value"]))
    return data.groupby(["seed", "arm", "from_step"])["value"].mean().reset_index()


def turned_back(rotation: pd.DataFrame) -> pd.DataFrame:
    """seed, arm, from_step, value: by how many degrees an arm ends nearer to the OOD peak than its start is."""
    return nearer_to_peak(mean_angles(rotation))


def rotation_and_accuracy(found: pd.DataFrame) -> Figure:
    """SFT: accuracy against how far the leading directions are turned from the base; above, at which steps.

    found: `stats.rotation_and_accuracy(measurements, "sft")`.
    """
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    place = np.degrees(found.groupby("step")["rotation"].mean())
    for split in ("id", "ood"):
        rows = found.assign(value=found[split], n=found[f"n_{split}"])[["step", "seed", "value", "n"]]
        data = bands(rows)
        draw_line(axis, data.assign(step=place.reindex(data["step"]).to_numpy()), split)
    axis.set(
        xlabel="mean principal angle from the base, leading 20 % (°)", ylabel="accuracy", ylim=(0, None), xscale="log"
    )
    steps_above(axis, place[place > 0])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(loc="upper left")
    return figure


def rotation_and_recovery(found: pd.DataFrame) -> Figure:
    """RL and controls: how far each turned the directions of its start, against the OOD accuracy that it gained.

    found: `stats.rotation_and_accuracy(measurements, "rl")`.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    markers = dict(zip(sorted(found["from_step"].unique()), "osD^v<>P" * 4, strict=False))
    for (arm, start), rows in found.groupby(["arm", "from_step"], observed=True):
        turned = over_seeds(np.degrees(rows["rotation"]))
        gain = over_seeds(100 * rows["ood"])
        axis.plot([turned.low, turned.high], [gain.value] * 2, color=COLOURS[arm])  # of one seed: none
        axis.plot([turned.value] * 2, [gain.low, gain.high], color=COLOURS[arm])
        axis.plot(turned.value, gain.value, markers[start], color=COLOURS[arm], markersize=8)
    axis.axhline(0, color="#555555", linestyle=":", linewidth=1.2)
    axis.set(
        xlabel="mean principal angle from the start, leading 20 % (°)", ylabel="OOD accuracy gained (points)",
        xlim=(0, None),
    )  # fmt: skip
    arms = [Line2D([], [], color=COLOURS[a], linewidth=5, label=NAMES[a]) for a in sorted(set(found["arm"]))]
    starts = [
        Line2D([], [], color="#555555", linestyle="", marker=m, markersize=8, label=f"from step {s}")
        for s, m in markers.items()
    ]
    figure.legend(handles=arms + starts, loc="outside right center")
    return figure


def surgery(measurements: pd.DataFrame) -> Figure:
    """Accuracy of the last checkpoint with the peak's singular values or vectors put back (C7, C8), OOD above ID."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    edits = accuracy[accuracy["stage"] == "surgery"].copy()
    parts = edits["arm"].str.extract(
        r"^(?P<part>\w+) (?P<place>top|tail|every) (?P<share>[\d.]+|matrix)(?: layers (?P<layers>\d+))?"
    )
    edits = pd.concat([edits, parts.assign(share=pd.to_numeric(parts["share"], errors="coerce"))], axis=1)
    end, leading = int(edits["step"].max()), (edits["place"] == "top") & edits["layers"].isna()
    columns = 1 if leading.all() else 2
    figure, axes = plt.subplots(2, columns, figsize=(WIDTH, 8), squeeze=False, layout="constrained")
    curves = accuracy[accuracy["stage"] == "sft"].groupby(["split", "step"])["value"].mean()
    peak = curves["ood"].idxmax()
    for split, (axis, *more) in zip(("ood", "id"), axes, strict=True):
        mine, sft = edits["split"] == split, accuracy[(accuracy["stage"] == "sft") & (accuracy["split"] == split)]
        levels = ((curves[split, peak], "OOD peak", "--"), (curves[split, end], "end of SFT", ":"))
        _leading_edits(axis, edits[mine & leading], sft[sft["step"] == end], levels)
        axis.set(ylabel=f"{NAMES[split]} accuracy of the edited model")
        for other in more:
            _other_edits(other, edits[mine & ~leading], levels)
            other.set(xlabel=f"{NAMES[split]} accuracy")
    axes[0, 0].set_title("Leading directions, all projections")
    if columns == 2:
        axes[0, 1].set_title("Other edits")
    axes[1, 0].set(xlabel="share of directions restored, leading first")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _leading_edits(axis: Axes, edits: pd.DataFrame, start: pd.DataFrame, levels: tuple) -> None:
    for part, label, line in (
        ("random", "null: random turn, same angles", "s--"),
        ("noise", "null: noise, same size", "v--"),
        ("signs", "null: same turn, random signs", "^--"),
        ("values", "values", "D-"),
        ("vectors", "vectors", "o-"),
    ):
        mine = edits[edits["part"] == part]
        per_seed = mine.groupby(["share", "seed"]).agg(value=("value", "mean"), n=("n", "first")).reset_index()
        origin = start.assign(share=0.0)[["share", "seed", "value", "n"]]
        found = bands(pd.concat([origin, per_seed])).sort_values("share")
        draw_line(axis, found.rename(columns={"share": "step"}), part, label=label)
        axis.lines[-1].set(marker=line[0], linestyle=line[1:])
    for level, name, dash in levels:
        axis.axhline(level, color="#555555", linestyle=dash, linewidth=1.2, label=name)
    axis.set(ylim=(0, None))
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PercentFormatter(1, decimals=0))


def _other_edits(axis: Axes, edits: pd.DataFrame, levels: tuple) -> None:
    names = [_edit_name(a) for a in edits["arm"]]
    found = bands(edits.assign(name=names)[["name", "part", "seed", "value", "n"]])
    for y, row in enumerate(found.itertuples()):
        axis.plot([row.low, row.high], [y, y], color=COLOURS[row.part], linewidth=2)
        axis.plot(row.mean, y, "o", color=COLOURS[row.part], markersize=7)
    for level, _, dash in levels:
        axis.axvline(level, color="#555555", linestyle=dash, linewidth=1.2)
    axis.set_yticks(range(len(found)), found["name"])
    axis.set(xlim=(0, None), ylim=(len(found) - 0.5, -0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _pairs(data: pd.DataFrame):
    """The pairs of checkpoints that tell the story and are there, over all seeds: (rows, name, colour, line)."""
    sft = data["arm"] == "sft"
    end = int(data.loc[sft, "step"].max())
    pairs = (
        (data[sft & (data["from_step"] == 0) & (data["step"] < end)], "base to OOD peak", COLOURS["train"], "-"),
        (data[sft & (data["from_step"] > 0)], "OOD peak to end", COLOURS["sft"], "-"),
        (data[(data["arm"] == "rl") & (data["from_step"] == end)], "end to RL", COLOURS["rl"], "--"),
    )
    return [pair for pair in pairs if len(pair[0])]


def _edit_name(arm: str) -> str:
    part, place, share, *layers = arm.split()
    part = {"random": "random turn", "signs": "random signs"}.get(part, part)
    if place == "every":
        return f"{part}, every matrix"
    if layers:
        return f"{part}, first {layers[1]} layer{'s' if layers[1] != '1' else ''}"
    return f"{part}, trailing {float(share):.0%}"
