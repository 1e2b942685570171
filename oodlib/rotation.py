"""Stage 3, rotation and surgery: what training did to singular values and vectors, and what undoing it does.

Rotation compares pairs of checkpoints matrix by matrix. Surgery puts singular values or vectors of the OOD
peak back into the last SFT checkpoint and measures the edited model on every problem of both splits.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from torch import Tensor

from oodlib.models import load_model, load_weights, matrices
from oodlib.presets import Preset
from oodlib.rl import arm_folder
from oodlib.runs import Run
from oodlib.sft import as_measurements, evaluate_model, peak_step, sft_folder
from oodlib.spectra import Spectrum, compare, direction_angles, spectrum
from oodlib.surgery import random_change, random_rotation, restore, restore_model


def measure_rotation(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """Spectra of every weight matrix, compared along the run: base, peak, end, and each arm with its start.

    Table `rotation`, one row a number: arm, from_step, step say which pair; metric is `value_change` (relative,
    by index), `direction_left` or `direction_right` (radians, by index: how far the i-th singular vector
    turned), `angle_left` or `angle_right` (radians, principal angles of the leading `rotation_share`).
    """
    preset, peak = run.preset, peak_step(run.table("measurements"), seed)
    end = preset.sft_steps
    steps = sorted({0, peak, end, *preset.rl_from})
    spectra = {step: _spectra(sft_folder(run, seed, step)) for step in steps}
    pairs = [("sft", a, b, spectra[a], spectra[b]) for a, b in ((0, peak), (peak, end), (0, end)) if a != b]
    tables = [_compare(preset, *pair, by_index=True) for pair in pairs]
    for step in preset.rl_from:
        for arm in preset.rl_arms:
            after = _spectra(arm_folder(run, seed, arm, step))
            by_index = arm == "rl" and step == end
            tables.append(_compare(preset, arm, step, preset.rl_steps, spectra[step], after, by_index))
            if peak != step:  # does the arm turn back towards the peak?
                away = _compare(preset, f"{arm} to peak", step, preset.rl_steps, spectra[peak], after, False)
                tables.append(away)
        if peak != step:
            tables.append(_compare(preset, "sft to peak", step, step, spectra[peak], spectra[step], False))
    rotation = pd.concat(tables, ignore_index=True).assign(stage="rotation", seed=seed)
    by_matrix = rotation.groupby(["arm", "from_step", "step", "metric"], sort=False)["value"]
    rows = [
        (
            "rotation",
            arm,
            from_step,
            step,
            seed,
            "weights",
            f"mean_{metric}",
            float(values.mean()),
            len(values),
        )
        for (arm, from_step, step, metric), values in by_matrix
    ]
    return {"rotation": rotation, "measurements": as_measurements(rows)}


def _spectra(folder: Path) -> dict[str, Spectrum]:
    weights = load_weights(folder)
    return {name: spectrum(weights[name], name) for name in matrices(list(weights))}


def _compare(
    preset: Preset,
    arm: str,
    from_step: int,
    step: int,
    before: dict[str, Spectrum],
    after: dict[str, Spectrum],
    by_index: bool,
) -> pd.DataFrame:
    frames = []
    for name, (layer, module) in matrices(list(before)).items():
        k = leading(preset.rotation_share, len(before[name].values))
        found = compare(before[name], after[name], k, name)
        numbers = {"angle_left": found.angles_left, "angle_right": found.angles_right}
        numbers["value_change"] = found.relative_change if by_index else found.relative_change[:k]
        if by_index:
            numbers["direction_left"], numbers["direction_right"] = direction_angles(before[name], after[name])
        for metric, values in numbers.items():
            columns = {"layer": layer, "module": module, "metric": metric, "index": range(len(values))}
            frames.append(pd.DataFrame({**columns, "value": np.float32(values)}))
    return pd.concat(frames, ignore_index=True).assign(arm=arm, from_step=from_step, step=step)


def leading(share: float, rank: int) -> int:
    """How many of `rank` directions a share of them is, at least one."""
    return max(1, round(share * rank))


# ---- surgery -------------------------------------------------------------------------------------------


def operate(
    run: Run,
    seed: int,
    name: str,
    part: str,
    top: float = 0.0,
    tail: float = 0.0,
    layers: int | None = None,
    embeddings: bool = False,
    draw: int = 0,
) -> dict[str, pd.DataFrame]:
    """Edit the last SFT checkpoint (recipient) with the OOD peak (donor), and measure the edited model.

    part: "vectors", "values", or one of the nulls: "random" (the recipient's vectors turned by a random
    rotation of the same principal angles) and "noise" (a random change of the same size). name: what the edit
    is called in the tables. top, tail: shares of the directions. layers: only the first so many;
    embeddings: the embedding and the unembedding too.
    """
    preset, peak = run.preset, peak_step(run.table("measurements"), seed)
    model, tokenizer = load_model(sft_folder(run, seed, preset.sft_steps))
    recipient = model.state_dict()
    donor = load_weights(sft_folder(run, seed, peak))
    every = matrices(list(recipient), embeddings)
    chosen = [name for name, (layer, _) in every.items() if layers is None or layer < layers]
    edit = partial(_edit, part=part, top=top, tail=tail, seed=1000 * seed + draw)
    edited = restore_model(recipient, donor, chosen, edit)
    moved = sum(float((edited[n] - recipient[n]).double().square().sum()) for n in chosen)
    whole = sum(float(recipient[n].double().square().sum()) for n in chosen)
    model.load_state_dict(edited)
    place = ("surgery", name, peak, preset.sft_steps, seed)
    tables = evaluate_model(run, model, tokenizer, *place)
    change = as_measurements([(*place, "weights", "relative_distance", (moved / whole) ** 0.5, len(chosen))])
    tables["measurements"] = pd.concat([tables["measurements"], change], ignore_index=True)
    return tables


def _edit(name: str, recipient: Tensor, donor: Tensor, part: str, top: float, tail: float, seed: int) -> Tensor:
    rank = min(recipient.shape)
    k_top = leading(top, rank) if top else 0
    draw = seed + crc32(name.encode())  # another for each matrix, the same on every run
    if part == "random":
        return random_rotation(recipient, donor, k_top, seed=draw)
    if part == "noise":
        return random_change(recipient, restore(recipient, donor, "vectors", k_top), seed=draw)
    return restore(recipient, donor, part, k_top, leading(tail, rank) if tail else 0)
