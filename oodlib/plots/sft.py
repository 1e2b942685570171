"""The figures of stage 1, SFT: accuracy, what is forgotten, losses, kinds of answers, and rotation along the steps."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.analysis.claims import PAPER
from oodlib.analysis.stats import BY_OLD_RULE, bands
from oodlib.analysis.stats import beliefs as belief_table
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, OUTCOME_COLOURS, WIDTH
from oodlib.results import judged_by
from oodlib.tasks import OUTCOMES, Cloze, Split, Splits

PAPER_HANDS = 234  # on which the paper measures
MEASURES = {  # of an answer: what figures call it, mark and line
    "numbers_read": ("numbers read", {"marker": "s", "linestyle": "--"}),
    "right_steps": ("right steps", {"marker": "s", "linestyle": "--"}),
    "accuracy": ("right", {"marker": "o", "linewidth": 2.2}),
    "old_numbers": ("old numbers", {"marker": "D", "linestyle": "-."}),
    "old_rule": ("right, old rule", {"marker": "^", "linestyle": ":"}),
}


def accuracy_curve(measurements: pd.DataFrame, splits: Splits) -> Figure:
    """Accuracy by split against SFT step, the headline's peak marked; the paper's LLaMA beside it.

    Of a run that is judged by reading (`results.judged_by`), that in place of accuracy.
    """
    metric = judged_by(measurements, splits)
    what = "accuracy on all problems of the split" if metric == "accuracy" else "answers that name the right numbers"
    data = _bands(measurements, splits, metric)
    figure, (here, paper) = plt.subplots(1, 2, figsize=(WIDTH, 4.4), width_ratios=(1.7, 1), layout="constrained")
    draw.by_split(here, data, splits)
    peak = _peak(measurements, splits)
    draw.step_axis(here, data["step"].unique())
    draw.mark_peak(here, peak["step"], f"{splits.headline.label} peak: {peak['mean']:.1%}\nat step {peak['step']:.0f}")
    here.set(ylabel=what, title="This run", ylim=(0, 1.12 if data["high"].max() < 0.95 else 1.27))  # room for words
    draw.legend_below(figure, here, 4)
    reported = paper_curve("sft")
    draw.line(paper, reported, splits.headline)
    paper.axvline(reported.loc[reported["mean"].idxmax(), "step"], color=GREY, linestyle=":")
    paper.set(xlabel=f"SFT step (linear; {PAPER_HANDS} hands)", ylim=(0, 0.3), title="The paper: LLaMA-3.2-11B")
    for axis in (here, paper):
        draw.percent(axis.yaxis)
    here.set_yticks(np.linspace(0, 1, 6))
    return figure


def _bands(measurements: pd.DataFrame, splits: Splits, *metrics: str, shares: bool = True) -> pd.DataFrame:
    """Mean and band of metrics (accuracy) of the splits at each SFT step."""
    rows = measurements[(measurements["stage"] == "sft") & measurements["metric"].isin(metrics or ["accuracy"])]
    return bands(rows[rows["split"].isin(splits.names)], shares)


def _peak(measurements: pd.DataFrame, splits: Splits) -> pd.Series:
    """The row of `_bands` at which the headline's mean is highest: of accuracy, or of what the run is judged by."""
    data = _bands(measurements, splits, judged_by(measurements, splits))
    headline = data[data["split"] == splits.headline.name]
    return headline.loc[headline["mean"].idxmax()]


def paper_curve(arm: str) -> pd.DataFrame:
    """OOD accuracy of the paper's LLaMA after SFT, or after RL from there, with Wilson's intervals.

    arm: sft or rl. Columns step, mean, low, high.
    """
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    share = np.divide(curve["sft" if arm == "sft" else "rl_from_step"], 100)
    return bands(pd.DataFrame({"step": curve["step"], "seed": 0, "value": share, "n": PAPER_HANDS}))


def corners(measurements: pd.DataFrame, splits: Splits) -> Figure:
    """A panel a split along SFT: are answers right, are the numbers read; or are they right, or named, by SFT's rule?

    The last two are left out where they are the first two, for the rule is that of SFT.
    """
    data = _bands(measurements, splits, *MEASURES)
    figure, axes = _panels(splits)
    for split, axis in axes.items():
        curves = dict(list(data[data["split"] == split.name].groupby("metric")))
        for old, new in BY_OLD_RULE.items():
            if old in curves and np.array_equal(curves[old]["mean"], curves[new]["mean"]):
                del curves[old]
        for metric, rows in curves.items():
            draw.line(axis, rows, split, size=4, **MEASURES[metric][1])
        draw.step_axis(axis, data["step"].unique())
        axis.axvline(_peak(measurements, splits)["step"], color=GREY, linestyle=":", linewidth=1.2)
        axis.set(ylim=(0, 1.02), ylabel="share of answers")
        draw.at_ends(axis, [(rows["mean"].iloc[-1], MEASURES[metric][0]) for metric, rows in curves.items()], 0.09)
        axis.set_title(split.label, color=split.colour)
        axis.label_outer()
        draw.percent(axis.yaxis)
    return figure


def _panels(splits: Splits) -> tuple[Figure, dict[Split, Axes]]:
    """A figure with a panel a split, two in a row.

    Where the headline changes two things and each is also changed alone, one is changed down, the other across, and
    rows and columns say so.
    """
    every, headings = list(splits), []
    if len(splits.headline.changes) == 2:
        down, across = splits.headline.changes
        if all(alone := [splits.changing(across), splits.changing(down)]):
            every = [splits.trained, *alone, splits.headline]
            headings = [(f"the {across} of SFT", f"the {down} of SFT"), (f"new {across}", f"new {down}")]
    rows = -(-len(every) // 2)
    size = (WIDTH, 2.8 * rows + 0.7)
    figure, axes = plt.subplots(rows, 2, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    places = list(axes.flat)
    if len(every) % 2:
        places.pop(1).remove()
    look = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "center"}
    for i, (column, row) in enumerate(headings):
        axes[0, i].annotate(column, (0.5, 1), (0, 32), weight="bold", **look)
        axes[i, 0].annotate(row, (0, 0.5), (-66, 0), weight="bold", rotation=90, **look)
    return figure, dict(zip(every, places, strict=True))


def face_values(measurements: pd.DataFrame, splits: Splits) -> Figure:
    """Accuracy, and the share of answers whose numbers are read, by the value of the probes, along the story; of a run
    that is judged by reading (`results.judged_by`), that alone.

    The story: the base, where the split with a new rule alone is best if that is before the headline's peak, the peak,
    the RL start in the middle of what follows (without RL: the step nearest to half of the fall), the end, and RL from
    these two; those that are there. Shaded are probes that need new numbers.
    """
    value = {probe.name: probe.value for probe in splits.probes}
    rows = measurements[measurements["split"].isin(value) & measurements["metric"].isin(("accuracy", "numbers_read"))]
    hands = rows["n"].min()
    data = bands(rows).rename(columns={"step": "at"}).assign(step=lambda d: d["split"].map(value))
    sft, rl = data["stage"] == "sft", (data["stage"] == "rl") & (data["arm"] == "rl")
    curve = _bands(measurements, splits, judged_by(measurements, splits))
    peak, end = _peak(measurements, splits)["step"], data.loc[sft, "at"].max()
    between = sorted(step for step in data.loc[rl, "from_step"].unique() if peak < step < end)
    if between:
        middle = between[len(between) // 2]
    else:
        fall = curve[(curve["split"] == splits.headline.name) & (curve["step"] >= peak)].set_index("step")["mean"]
        middle = (fall - (fall[peak] + fall[end]) / 2).abs().idxmin()
    looks = {middle: {"marker": "s", "linestyle": "--"}, end: {"marker": "^", "linestyle": ":"}}
    curves = [("base", sft & (data["at"] == 0), "sft", {"marker": "d", "color": "#A0A0A0"})]
    if rule := splits.changing("rule"):
        early = curve[curve["split"] == rule.name].set_index("step")["mean"].idxmax()
        if early < peak:
            look = {"marker": "v", "color": rule.colour}
            curves.append((f"{rule.label}'s best (step {early})", sft & (data["at"] == early), "sft", look))
    curves += [(f"peak (step {peak})", sft & (data["at"] == peak), "sft", {})]
    for step, look in looks.items():
        curves += [(f"{'end' if step == end else 'middle'} (step {step})", sft & (data["at"] == step), "sft", look)]
        curves += [(f"RL from step {step}", rl & (data["from_step"] == step), "rl", look)]
    shown = {"accuracy": "Right answers", "numbers_read": "Numbers read"}
    judged = judged_by(measurements, splits)
    shown = {m: title for m, title in shown.items() if (data["metric"] == m).any() and judged in ("accuracy", m)}
    figure, axes = plt.subplots(1, len(shown), figsize=(WIDTH, 4.6), sharey=True, squeeze=False, layout="constrained")
    curves = [curve for curve in curves if curve[1].any()]
    new = [probe.value for probe in splits.probes if "numbers" in probe.changes]
    trained = "".join(f" (SFT: {probe.value:g})" for probe in splits.probes if not probe.changes)
    for axis, (metric, title) in zip(axes[0], shown.items(), strict=True):
        for i, (name, rows, arm, look) in enumerate(curves):
            curve = data[rows & (data["metric"] == metric)].sort_values("step")
            ends = [curve["mean"] - curve["low"], curve["high"] - curve["mean"]]
            look = {"color": COLOURS[arm], "marker": "o", "markersize": 5, "elinewidth": 1, **look}
            beside = curve["step"] + 0.09 * (i - (len(curves) - 1) / 2)  # so that the bars do not hide each other
            axis.errorbar(beside, curve["mean"], ends, label=name, **look)
        if new:
            axis.axvspan(min(new) - 0.5, max(new) + 0.5, color="#EDEDED", linewidth=0, zorder=0)
            where = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 10}
            axis.text(np.mean(new), 1.01, "new numbers", **where)
        axis.set(title=title, ylim=(0, 1.02), xlabel=splits.probes[0].probe + trained, xticks=list(value.values()))
    axes[0, 0].set_ylabel(f"share of answers ({hands:.0f} problems a value and seed)")
    draw.percent(axes[0, 0].yaxis)
    draw.legend_below(figure, axes[0, 0], 3)
    return figure


def beliefs(measurements: pd.DataFrame, clozes: Sequence[Cloze], splits: Splits) -> Figure:
    """What symbols of the prompt count for to the model: before SFT, where no rule is stated; and along SFT, each
    rule's values where the prompt states that rule and where it states none."""
    figure, (before, along) = plt.subplots(1, 2, figsize=(WIDTH, 4.6), width_ratios=(1, 1.3), layout="constrained")
    sft = measurements[measurements["stage"] == "sft"]
    base = sft[(sft["step"] == 0) & sft["split"].isin({cloze.split for cloze in clozes if cloze.rule == "none"})]
    marks = dict(zip(dict.fromkeys(cloze.symbol for cloze in clozes), "os^Dv", strict=False))
    for symbol, mark in marks.items():
        rows = base[base["metric"].str.startswith(f"{symbol}=")]
        chances = rows.groupby(rows["metric"].str.partition("=")[2].astype(int))["value"].mean()
        before.plot(chances.index, chances, marker=mark, color="#555555", linewidth=1, markersize=5, label=symbol)
    before.set(
        title="The base, no rule stated", xlabel="what a card counts for", ylabel="probability", xticks=chances.index
    )
    before.legend(loc="upper right")
    table = bands(belief_table(measurements, clozes), shares=False)
    for split in (split for split in splits if split.name in clozes[0].under):
        for rule, look in ((split.name, {}), ("none", {"linestyle": ":", "marker": "s"})):
            if split.changes or rule == "none":
                name = f"{split.label}'s values, {'no rule' if rule == 'none' else 'its rule'} stated"
                draw.line(along, table.query("rule == @rule and under == @split.name"), split, name, 4, **look)
    draw.step_axis(along, table["step"].unique())
    along.set(title="Along SFT", ylim=(0, 1.02))
    draw.legend_below(figure, along, 2)
    return figure


def losses(measurements: pd.DataFrame, hands: pd.DataFrame, splits: Splits) -> Figure:
    """Training loss and each split's loss against step, the headline's accuracy peak marked: is it in a loss (C2)?"""
    rows = measurements.query("stage == 'sft' and metric == 'loss'")
    tested = _bands(measurements, splits, "loss", shares=False)
    if measurements["seed"].nunique() == 1:  # one seed: the band is over hands
        spread = hands[hands["stage"] == "sft"].groupby(["split", "step"], observed=True)["loss"].sem().rename("sem")
        tested = tested.merge(spread.reset_index().astype({"split": str}), on=["split", "step"])
        tested["low"], tested["high"] = tested["mean"] - 1.96 * tested["sem"], tested["mean"] + 1.96 * tested["sem"]
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    train = rows[rows["split"] == "train"].groupby("step")["value"].mean()
    axis.plot(train.index, train, color=COLOURS["train"], linewidth=0.6, alpha=0.3, label="training, each batch")
    draw.losses(axis, rows, tested, splits, " test")
    draw.mark_peak(axis, _peak(measurements, splits)["step"], f"{splits.headline.label} accuracy\npeak")
    axis.set_title("Losses through SFT")
    draw.legend_below(figure, axis, 3)
    return figure


def outcomes(measurements: pd.DataFrame, splits: Splits) -> Figure:
    """The kinds of answers against step, a panel a split (C3)."""
    names = {"accuracy": "correct", **{outcome: outcome.replace("_", " ") for outcome in OUTCOMES[1:]}}
    figure, axes = _panels(splits)
    for split, axis in axes.items():
        rows = measurements[(measurements["stage"] == "sft") & (measurements["split"] == split.name)]
        table = rows.pivot_table(index="step", columns="metric", values="value")[[*names]].dropna()
        axis.stackplot(table.index, table.T.to_numpy(), labels=names.values(), colors=OUTCOME_COLOURS.values())
        draw.step_axis(axis, table.index)
        axis.set(ylim=(0, 1), ylabel="share of answers")
        axis.set_title(split.label, color=split.colour)
        axis.label_outer()
        axis.grid(False)
        draw.percent(axis.yaxis)
    draw.legend_below(figure, axes[splits.trained], 5)
    return figure


def rotation_and_accuracy(turned: pd.DataFrame, splits: Splits) -> Figure:
    """Accuracy against how far the leading directions are turned from the base; above, at which steps.

    turned: `stats.rotation_and_accuracy(measurements, "sft", splits)`.
    """
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    degrees = np.degrees(turned.groupby("step")["rotation"].mean())
    for role in ("trained", "headline"):
        data = bands(turned.assign(value=turned[role], n=turned[f"n_{role}"])[["step", "seed", "value", "n"]])
        draw.line(axis, data.assign(step=degrees.reindex(data["step"]).to_numpy()), getattr(splits, role))
    unit = "mean principal angle from the base, leading 20 % (°)"
    axis.set(xlabel=unit, ylabel="accuracy", ylim=(0, None), xscale="log")
    steps = degrees[degrees > 0].sort_values()
    steps = steps.iloc[draw.with_room(axis, steps)]
    above = axis.secondary_xaxis("top")
    above.set_xticks(steps, steps.index.astype(str))
    above.set_xticks([], minor=True)
    above.set_xlabel("SFT step")
    draw.log_ticks(axis.xaxis, 1, 2, 5)
    draw.percent(axis.yaxis)
    axis.legend(loc="upper left")
    return figure
