"""The figures. Each is drawn from a run's tables alone, so that it can be drawn again without training.

One colour means one thing everywhere: see `COLOURS` (Okabe and Ito's palette, safe for colour-blind readers).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

from oodlib.claims import PAPER, Claim, interval
from oodlib.stats import bands
from oodlib.tasks import OUTCOMES

COLOURS = {
    "id": "#0072B2",
    "ood": "#D55E00",
    "train": "#7F7F7F",
    "sft": "#000000",
    "rl": "#009E73",
    "sft_continued": "#E69F00",
    "rejection_sampling": "#56B4E9",
    "paper": "#8C6BB1",
    "vectors": "#D55E00",
    "values": "#0072B2",
    "random": "#7F7F7F",
    "noise": "#CC79A7",
}
NAMES = {
    "id": "ID",
    "ood": "OOD",
    "train": "training",
    "sft": "SFT checkpoint",
    "rl": "after RL",
    "sft_continued": "control: SFT continued",
    "rejection_sampling": "control: rejection sampling",
}
OUTCOME_COLOURS = dict(zip(OUTCOMES, ("#009E73", "#F0E442", "#E69F00", "#CC79A7", "#999999"), strict=True))
VERDICT_COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#7F7F7F"}


def style() -> None:
    """The look of all figures: call once before drawing."""
    sns.set_theme(context="notebook", style="ticks", font_scale=1.0)
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "savefig.bbox": "tight",
            "svg.hashsalt": "oodlib",
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
        }
    )


def accuracy_curve(measurements: pd.DataFrame) -> Figure:
    """ID and OOD accuracy against SFT step, the OOD peak marked; the paper's LLaMA beside it."""
    data = bands(_sft(measurements, "accuracy"))
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.5, 1), layout="constrained")
    for split in ("id", "ood"):
        _line(ours, data[data["split"] == split], split)
    ood = data[data["split"] == "ood"].sort_values("step")
    peak = ood.loc[ood["mean"].idxmax()]
    _mark_peak(ours, peak["step"], f"OOD peak: {peak['mean']:.1%}\nat step {peak['step']:.0f}")
    _steps(ours, ood["step"])
    ours.set(ylabel="accuracy on all hands of the split", title="This run", ylim=(0, 1))
    ours.legend(loc="upper left")
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    share = np.array(curve["sft"]) / 100
    theirs.plot(curve["step"], share, "o-", color=COLOURS["ood"], label="OOD", markersize=5)
    low, high = _wilson(share, 234)
    theirs.fill_between(curve["step"], low, high, color=COLOURS["ood"], alpha=0.15, linewidth=0)
    best = int(np.argmax(share))
    theirs.axvline(curve["step"][best], color="#555555", linestyle=":")
    theirs.set(xlabel="SFT step", ylim=(0, 0.3), title="The paper: LLaMA-3.2-11B, 234 hands, one run")
    theirs.legend(loc="upper right")
    for axis in (ours, theirs):
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def losses(measurements: pd.DataFrame, hands: pd.DataFrame) -> Figure:
    """Training, ID and OOD loss against step, the OOD accuracy peak marked: does a loss show it (C2)?"""
    data = _sft(measurements, "loss")
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    train = data[data["split"] == "train"].groupby("step")["value"].mean()
    smooth = train.rolling(15, min_periods=1, center=True).mean()
    axis.plot(smooth.index, smooth, color=COLOURS["train"], linewidth=1, label="training (mean of 15 steps)")
    tested = bands(data[data["split"] != "train"], shares=False)
    if measurements["seed"].nunique() == 1:  # one seed: the band is over hands
        spread = hands[hands["stage"] == "sft"].groupby(["split", "step"], observed=True)["loss"].sem().rename("sem")
        tested = tested.merge(spread.reset_index().astype({"split": str}), on=["split", "step"])
        tested["low"], tested["high"] = tested["mean"] - 1.96 * tested["sem"], tested["mean"] + 1.96 * tested["sem"]
    for split in ("id", "ood"):
        _line(axis, tested[tested["split"] == split], split, label=f"{NAMES[split]} test")
    accuracy = bands(_sft(measurements, "accuracy").query("split == 'ood'"))
    _mark_peak(axis, accuracy.loc[accuracy["mean"].idxmax(), "step"], "OOD accuracy\npeak")
    _steps(axis, accuracy["step"])
    axis.set(ylabel="loss (nats a token)", title="Losses through SFT", yscale="log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.tick_params(axis="y", which="minor", labelsize=9)
    axis.legend(loc="upper right")
    return figure


def outcomes(measurements: pd.DataFrame) -> Figure:
    """What the answers are, by kind, against step, for both splits (C3), with the paper's malformed share."""
    metrics = ["accuracy", *OUTCOMES[1:]]
    data = measurements[(measurements["stage"] == "sft") & measurements["metric"].isin(metrics)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("id", "ood"), strict=True):
        table = data[data["split"] == split].pivot_table(index="step", columns="metric", values="value")[metrics]
        axis.stackplot(
            table.index,
            table.T.to_numpy(),
            labels=["correct", *(m.replace("_", " ") for m in metrics[1:])],
            colors=list(OUTCOME_COLOURS.values()),
        )
        _steps(axis, table.index)
        axis.set(title=f"{NAMES[split]} answers", ylim=(0, 1))
        axis.grid(False)
    axes[0].set_ylabel("share of all hands")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def recovery(measurements: pd.DataFrame) -> Figure:
    """OOD (and ID) accuracy of SFT checkpoints, and after RL and each control from there; the paper's beside it."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    rl = accuracy[accuracy["stage"] == "rl"].assign(step=lambda f: f["from_step"])
    sft = accuracy[(accuracy["stage"] == "sft") & (accuracy["step"] > 0)]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), width_ratios=(1.2, 1.2, 1), layout="constrained")
    for axis, split in zip(axes, ("ood", "id"), strict=False):
        _line(axis, bands(sft[sft["split"] == split]), "sft", markersize=4)
        arms = [a for a in ("sft_continued", "rejection_sampling", "rl") if a in set(rl["arm"])]
        for i, arm in enumerate(arms):
            mine = bands(rl[(rl["split"] == split) & (rl["arm"] == arm)]).sort_values("step")
            shift = np.exp(0.09 * (i - 1))  # side by side, so that the intervals can be told apart
            axis.errorbar(
                mine["step"] * shift,
                mine["mean"],
                [mine["mean"] - mine["low"], mine["high"] - mine["mean"]],
                fmt="D" if arm == "rl" else "s",
                color=COLOURS[arm],
                label=NAMES[arm],
                markersize=7,
                capsize=3,
                linestyle=":",
                linewidth=1.2,
            )
        _steps(axis, rl["step"].unique(), first=0.85 * sft["step"].min(), last=1.3 * sft["step"].max())
        axis.set(title=f"{NAMES[split]} accuracy", xlabel="SFT step from which it starts", ylim=(0, None))
    axes[0].set_ylabel("accuracy on all hands of the split")
    axes[0].set_ylim(top=max(0.05, axes[0].get_ylim()[1]) * 1.05)
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    for name, colour, label in (("sft", "sft", "SFT checkpoint"), ("rl_from_step", "rl", "after RL")):
        share = np.array(curve[name]) / 100
        low, high = _wilson(share, 234)
        axes[2].plot(curve["step"], share, "o-", color=COLOURS[colour], label=label, markersize=4)
        axes[2].fill_between(curve["step"], low, high, color=COLOURS[colour], alpha=0.12, linewidth=0)
    axes[2].axvspan(*PAPER["rl_window_llama_steps"], color=COLOURS["paper"], alpha=0.08, linewidth=0)
    axes[2].set(title="The paper: LLaMA-3.2-11B, OOD", xlabel="SFT step from which it starts", ylim=(0, 0.3))
    axes[2].text(810, 0.285, "the paper's window", ha="center", va="top", fontsize=10, color=COLOURS["paper"])
    for axis in axes:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def advantages(rollouts: pd.DataFrame) -> Figure:
    """How the advantages spread in RL from each SFT checkpoint (C6)."""
    starts = sorted(rollouts["from_step"].unique())
    figure, axes = plt.subplots(1, len(starts), figsize=(3.4 * len(starts), 3.6), sharey=True, layout="constrained")
    edge = float(np.abs(rollouts["advantage"]).max()) + 1e-6
    bins = np.linspace(-edge, edge, 26)
    for axis, start in zip(np.atleast_1d(axes), starts, strict=True):
        mine = rollouts[rollouts["from_step"] == start]
        axis.hist(
            mine["advantage"],
            bins,
            weights=np.full(len(mine), 1 / len(mine)),
            color=COLOURS["rl"],
            alpha=0.85,
        )
        skewness = mine.groupby("seed", observed=True)["advantage"].skew().mean()
        right = (mine["outcome"] == "correct").mean()
        axis.set(title=f"from step {start}", xlabel="advantage")
        axis.text(0.04, 0.96, f"correct {right:.0%}\nskewness {skewness:+.2f}", transform=axis.transAxes, va="top")
        axis.axvline(0, color="#555555", linewidth=0.8)
    first = np.atleast_1d(axes)[0]
    first.set(ylabel="share of samples", ylim=(0, first.get_ylim()[1] * 1.25))
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def rewards(rollouts: pd.DataFrame) -> Figure:
    """Mean training reward against RL update, for each start."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    starts = sorted(rollouts["from_step"].unique())
    for start, colour in zip(starts, sns.color_palette("viridis_r", len(starts)), strict=True):
        mine = rollouts[rollouts["from_step"] == start]
        curve = mine.groupby("update")["reward"].agg(["mean", "sem"])
        axis.plot(curve.index, curve["mean"], color=colour, label=f"from step {start}")
        axis.fill_between(
            curve.index,
            curve["mean"] - 1.96 * curve["sem"],
            curve["mean"] + 1.96 * curve["sem"],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axis.set(xlabel="RL update", ylabel="mean reward (5 = correct)", title="Training reward, ID hands")
    axis.legend()
    return figure


def value_change(rotation: pd.DataFrame) -> Figure:
    """Relative change of singular values, and angle of singular vectors, against the index, along the run."""
    kinds = {
        "value_change": "relative change of the singular value",
        "direction": "angle of the singular vector (°)",
    }
    data = rotation[rotation["arm"].isin(["sft", "rl"])].copy()
    data["metric"] = data["metric"].astype(str)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (kind, label) in zip(axes, kinds.items(), strict=True):
        mine = data[data["metric"].str.startswith(kind)]
        sizes = mine.groupby(["layer", "module"], observed=True)["index"].transform("max")
        mine = mine.assign(position=((mine["index"] + 0.5) / (sizes + 1) * 20).astype(int) / 20 + 0.025)
        if kind == "direction":
            mine = mine.assign(value=np.degrees(mine["value"]))
        for (arm, a, b), name, colour, dash in _pairs(mine):
            one = mine[(mine["arm"] == arm) & (mine["from_step"] == a) & (mine["step"] == b)]
            curve = one.groupby("position")["value"].quantile([0.25, 0.5, 0.75]).unstack()
            axis.plot(curve.index, curve[0.5], dash, color=colour, label=name)
            axis.fill_between(curve.index, curve[0.25], curve[0.75], color=colour, alpha=0.12, linewidth=0)
        axis.set(xlabel="place in the spectrum (0 = largest singular value)", ylabel=label, ylim=(0, None))
    axes[0].set_title("Singular values")
    axes[1].set_title("Singular vectors")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].legend(loc="upper left")
    return figure


def rotation_map(rotation: pd.DataFrame) -> Figure:
    """The mean principal angle of the leading directions by layer and module, for each step of the story."""
    data = rotation[rotation["metric"].isin(["angle_left", "angle_right"]) & rotation["arm"].isin(["sft", "rl"])]
    data = data.assign(value=np.degrees(data["value"]))
    pairs = list(_pairs(data, ends_only=True))
    figure, axes = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 3.8), sharey=True, layout="constrained")
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tables = []
    for (arm, a, b), _, _, _ in pairs:
        mine = data[(data["arm"] == arm) & (data["from_step"] == a) & (data["step"] == b)]
        table = mine.pivot_table(index="module", columns="layer", values="value", observed=True)
        table.index = table.index.astype(str)
        tables.append(table.reindex([m for m in order if m in table.index]))
    top = max(float(t.to_numpy().max()) for t in tables)
    for axis, table, (_, name, _, _) in zip(np.atleast_1d(axes), tables, pairs, strict=True):
        last = axis is np.atleast_1d(axes)[-1]
        sns.heatmap(
            table, ax=axis, cmap="viridis", vmin=0, vmax=top, annot=True, fmt=".1f", cbar=last,
            cbar_kws={"label": "mean principal angle (°)"},
        )  # fmt: skip
        axis.set(title=name, xlabel="layer", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    return figure


def turning(rotation: pd.DataFrame) -> Figure:
    """How far RL and the controls turn the leading directions from each start, and how far from the peak they end."""
    data = rotation[rotation["metric"].isin(["angle_left", "angle_right"])].copy()
    data["arm"] = data["arm"].astype(str)
    data["value"] = np.degrees(data["value"])
    means = data.groupby(["seed", "arm", "from_step"])["value"].mean().reset_index()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, ending, title in (
        (axes[0], "", "Turned from the start"),
        (axes[1], " to peak", "Away from the OOD peak"),
    ):
        for arm in ("sft", "sft_continued", "rejection_sampling", "rl"):
            mine = means[means["arm"] == arm + ending]
            if mine.empty or (arm == "sft" and not ending):
                continue
            found = bands(mine.assign(n=0)[["arm", "from_step", "seed", "value", "n"]], shares=False).sort_values(
                "from_step"
            )
            axis.errorbar(
                found["from_step"], found["mean"], [found["mean"] - found["low"], found["high"] - found["mean"]],
                fmt="o-", color=COLOURS[arm], label=NAMES[arm], capsize=3,
            )  # fmt: skip
        _steps(axis, means["from_step"].unique()[means["from_step"].unique() > 0])
        axis.set(
            title=title,
            xlabel="SFT step from which it starts",
            ylabel="mean principal angle (°)",
            ylim=(0, None),
        )
        axis.legend()
    return figure


def surgery(measurements: pd.DataFrame) -> Figure:
    """OOD accuracy of the last checkpoint with the peak's singular values or vectors put back (C7, C8)."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    edits = accuracy[accuracy["stage"] == "surgery"].copy()
    parts = edits["arm"].str.extract(
        r"^(?P<part>\w+) (?P<place>top|tail|every) (?P<share>[\d.]+|matrix)(?: layers (?P<layers>\d+))?"
    )
    edits = pd.concat([edits, parts.assign(share=pd.to_numeric(parts["share"], errors="coerce"))], axis=1)
    end = int(edits["step"].max())
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, width_ratios=(1.6, 1), layout="constrained")
    leading = edits[(edits["place"] == "top") & edits["layers"].isna() & (edits["split"] == "ood")]
    start = accuracy[(accuracy["stage"] == "sft") & (accuracy["step"] == end) & (accuracy["split"] == "ood")]
    for part, label in (
        ("vectors", "vectors"),
        ("values", "values"),
        ("random", "null: random turn, same angles"),
        ("noise", "null: noise, same size"),
    ):
        mine = leading[leading["part"] == part]
        per_seed = mine.groupby(["share", "seed"]).agg(value=("value", "mean"), n=("n", "first")).reset_index()
        origin = start.assign(share=0.0)[["share", "seed", "value", "n"]]
        found = bands(pd.concat([origin, per_seed])).sort_values("share")
        _line(axes[0], found.rename(columns={"share": "step"}), part, label=label)
    for axis in axes:
        _levels(axis, accuracy, end)
    axes[0].set(
        xlabel="share of the leading directions restored", ylabel="OOD accuracy of the edited model",
        title="Restoring leading directions, all layers",
    )  # fmt: skip
    axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    others = edits[(edits["split"] == "ood") & ((edits["place"] != "top") | edits["layers"].notna())]
    names = [_edit_name(a) for a in others["arm"]]
    found = bands(others.assign(name=names)[["name", "part", "seed", "value", "n"]])
    for i, row in enumerate(found.itertuples()):
        gap = [[row.mean - row.low], [row.high - row.mean]]
        axes[1].errorbar([i], [row.mean], gap, fmt="o", capsize=4, color=COLOURS[row.part])
    axes[1].set_xticks(range(len(found)), found["name"], rotation=30, ha="right")
    axes[1].set(title="Other edits", xlim=(-0.5, len(found) - 0.5))
    axes[0].set_ylim(0)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def scorecard(claims: list[Claim]) -> Figure:
    """The verdicts as a table."""
    figure, axis = plt.subplots(figsize=(11, 0.62 * len(claims) + 0.7), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(len(claims), -1))
    axis.axis("off")
    for x, head in ((0.0, "claim"), (0.60, "estimate [95 % interval]"), (0.80, "paper"), (0.88, "verdict")):
        axis.text(x, -0.6, head, weight="bold", va="center")
    for i, claim in enumerate(claims):
        axis.axhline(i - 0.15, color="#DDDDDD", linewidth=0.8)
        axis.text(0.0, i + 0.2, claim.claim, weight="bold", va="center")
        axis.text(0.035, i + 0.2, claim.title, va="center", fontsize=10)
        axis.text(0.035, i + 0.58, claim.quantity, va="center", fontsize=9, color="#666666")
        axis.text(0.60, i + 0.35, interval(claim), va="center")
        axis.text(0.80, i + 0.35, "" if claim.paper is None else f"{claim.paper:+.3f}", va="center")
        axis.text(0.88, i + 0.35, claim.verdict, va="center", weight="bold", color=VERDICT_COLOURS[claim.verdict])
    return figure


# ---- pieces --------------------------------------------------------------------------------------------


def _sft(measurements: pd.DataFrame, metric: str) -> pd.DataFrame:
    return measurements[(measurements["stage"] == "sft") & (measurements["metric"] == metric)]


def _line(axis: Axes, data: pd.DataFrame, kind: str, label: str | None = None, markersize: float = 5) -> None:
    data = data.sort_values("step")
    name = label or NAMES.get(kind, kind)
    axis.plot(data["step"], data["mean"], "o-", color=COLOURS[kind], label=name, markersize=markersize)
    axis.fill_between(data["step"], data["low"], data["high"], color=COLOURS[kind], alpha=0.18, linewidth=0)


def _mark_peak(axis: Axes, step: float, text: str) -> None:
    axis.axvline(step, color="#555555", linestyle=":", linewidth=1.2)
    axis.annotate(
        text, (step, 0.98), xycoords=axis.get_xaxis_transform(), xytext=(8, 0), textcoords="offset points", va="top"
    )


def _steps(axis: Axes, steps, first: float | None = None, last: float | None = None) -> None:
    """A symmetric-log step axis (early checkpoints are dense) with plain tick labels."""
    steps = sorted(float(s) for s in steps)
    positive = [s for s in steps if s > 0]
    axis.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    low, high = (steps[0] if first is None else first), (steps[-1] * 1.08 if last is None else last)
    axis.set_xlim(low, high)
    places = axis.transAxes.inverted().transform(axis.transData.transform([(step, 0) for step in steps]))[:, 0]
    width = axis.get_figure().get_figwidth() / axis.get_subplotspec().get_geometry()[1]
    ticks, before = [], np.inf
    for step, place in zip(steps[::-1], places[::-1], strict=True):  # the last step always gets its label
        if (before - place) * width > 0.36:
            ticks.append(step)
            before = place
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("SFT step")


def _pairs(data: pd.DataFrame, ends_only: bool = False):
    """The pairs of checkpoints that tell the story: ((arm, from, to), name, colour, line)."""
    sft = data[data["arm"] == "sft"]
    found = sorted({(int(a), int(b)) for a, b in zip(sft["from_step"], sft["step"], strict=True)})
    end = max(b for _, b in found)
    for a, b in found:
        if a == 0 and b < end:
            yield ("sft", a, b), f"base to peak (SFT 0-{b})", COLOURS["id"], "-"
        elif a > 0:
            yield ("sft", a, b), f"peak to end (SFT {a}-{b})", COLOURS["ood"], "-"
    rl = data[(data["arm"] == "rl") & (data["from_step"] == end)]
    if len(rl):
        updates = int(rl["step"].max())
        yield ("rl", end, updates), f"end to RL ({updates} updates)", COLOURS["rl"], "--"


def _levels(axis: Axes, accuracy: pd.DataFrame, end: int) -> None:
    curve = accuracy[(accuracy["stage"] == "sft") & (accuracy["split"] == "ood")].groupby("step")["value"].mean()
    for step, name in ((curve.idxmax(), "OOD peak"), (end, "end of SFT")):
        axis.axhline(curve[step], color="#555555", linestyle=":", linewidth=1.2)
        axis.annotate(
            name, (1, curve[step]), xycoords=axis.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points",
            ha="right", fontsize=10, color="#555555",
        )  # fmt: skip


def _edit_name(arm: str) -> str:
    part, place, share, *layers = arm.split()
    part = {"random": "null: random turn", "noise": "null: noise"}.get(part, part)
    if place == "every":
        return f"{part}, every matrix"
    if layers:
        return f"{part}, first {layers[1]} layer{'s' if layers[1] != '1' else ''}"
    return f"{part}, last {float(share):.0%}"


def _wilson(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import binomtest

    found = [binomtest(round(float(s) * n), n).proportion_ci(method="wilson") for s in share]
    return np.array([f.low for f in found]), np.array([f.high for f in found])
