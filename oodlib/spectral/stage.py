"""Stage 3, rotation and surgery: what training did to singular values and vectors, and what undoing it does.

Rotation compares pairs of checkpoints matrix by matrix. Surgery puts singular values or vectors of the OOD
peak back into the last SFT checkpoint and measures the edited model on every problem of both splits.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
from torch import Tensor

from oodlib.config import Config
from oodlib.inference.evaluation import evaluate_model
from oodlib.io import as_measurements, peak_step
from oodlib.models.checkpoints import device, open_text
from oodlib.models.loading import load_model, load_weights, matrices
from oodlib.run import Run
from oodlib.spectral.surgery import random_change, random_rotation, random_signs, restore, restore_model
from oodlib.spectral.svd import Spectrum, compare, direction_angles, spectrum


def measure_rotation(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """Spectra of every weight matrix, compared along the run: base, peak, end, and each arm with its start.

    Table `rotation`, one row a number: arm, from_step, step say which pair; metric is `value_change` (relative,
    by index), `direction_left` or `direction_right` (radians, by index: how far the i-th singular vector
    turned), `angle_left` or `angle_right` (radians, principal angles of the leading `rotation_share`).
    """
    pairs = _pairs(run, seed, peak_step(run.table("measurements"), seed))
    weights = {folder: open_text(folder) for pair in pairs for folder in (pair.before, pair.after)}
    tables: dict[Pair, list[pd.DataFrame]] = {pair: [] for pair in pairs}
    for name, place in matrices(list(weights[pairs[0].before].shapes)).items():  # one at a time, for memory
        spectra = {pair.before: None for pair in pairs}
        for folder in spectra:
            spectra[folder] = spectrum(weights[folder].tensor(name).to(device()), name)
        for folder in {pair.after: None for pair in pairs}:
            after = spectra.get(folder) or spectrum(weights[folder].tensor(name).to(device()), name)
            for pair in (pair for pair in pairs if pair.after == folder):
                tables[pair].append(_compare(run.config, pair, spectra[pair.before], after, name, *place))
    rotation = pd.concat([frame for mine in tables.values() for frame in mine], ignore_index=True)
    rotation = rotation.assign(stage="rotation", seed=seed)
    by_matrix = rotation.groupby(["arm", "from_step", "step", "metric"], sort=False)["value"]
    rows = [
        ("rotation", *key[:3], seed, "weights", f"mean_{key[3]}", float(values.mean()), len(values))
        for key, values in by_matrix
    ]
    return {"rotation": rotation, "measurements": as_measurements(rows)}


class Pair(NamedTuple):
    """Two checkpoints to compare, and what the pair is called in the tables."""

    arm: str
    from_step: int
    step: int
    before: Path
    after: Path
    by_index: bool = False  # also what became of each direction


def _pairs(run: Run, seed: int, peak: int) -> list[Pair]:
    config, end = run.config, run.config.sft.steps
    sft = partial(run.sft_weights, seed)
    steps = [(a, b) for a, b in ((0, peak), (peak, end), (0, end)) if a != b]
    pairs = [Pair("sft", a, b, sft(a), sft(b), True) for a, b in steps]
    for step in config.rl.starts:
        for arm in ("rl", *config.rl.baselines):
            after = run.arm_weights(seed, arm, step)
            pairs.append(Pair(arm, step, config.rl.steps, sft(step), after, arm == "rl" and step == end))
            if peak != step:  # does the arm turn back towards the peak?
                pairs.append(Pair(f"{arm} to peak", step, config.rl.steps, sft(peak), after))
        if peak != step:
            pairs.append(Pair("sft to peak", step, step, sft(peak), sft(step)))
    return pairs


def _compare(
    config: Config, pair: Pair, before: Spectrum, after: Spectrum, name: str, layer: int | None, module: str
) -> pd.DataFrame:
    k = leading(config.rotation.share, len(before.values))
    found = compare(before, after, k, name)
    numbers = {"angle_left": found.angles_left, "angle_right": found.angles_right}
    numbers["value_change"] = found.relative_change if pair.by_index else found.relative_change[:k]
    if pair.by_index:
        numbers["direction_left"], numbers["direction_right"] = direction_angles(before, after)
    frames = []
    for metric, values in numbers.items():
        columns = {"layer": layer, "module": module, "metric": metric, "index": range(len(values))}
        frames.append(pd.DataFrame({**columns, "value": np.float32(values)}))
    return pd.concat(frames, ignore_index=True).assign(arm=pair.arm, from_step=pair.from_step, step=pair.step)


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
    rotation of the same principal angles), "signs" (the same turn with random signs: same angles, same size) and
    "noise" (a random change of the same size). name: what the edit
    is called in the tables. top, tail: shares of the directions. layers: only the first so many;
    embeddings: the embedding and the unembedding too.
    """
    config, peak = run.config, peak_step(run.table("measurements"), seed)
    model, tokenizer = load_model(run.sft_weights(seed, config.sft.steps))
    recipient = model.state_dict()
    donor = load_weights(run.sft_weights(seed, peak))
    every = matrices(list(recipient), embeddings)
    chosen = [name for name, (layer, _) in every.items() if layers is None or layer < layers]
    edit = partial(_edit, part=part, top=top, tail=tail, seed=1000 * seed + draw)
    edited = restore_model(recipient, donor, chosen, edit)
    moved = sum(float((edited[n] - recipient[n]).double().square().sum()) for n in chosen)
    whole = sum(float(recipient[n].double().square().sum()) for n in chosen)
    model.load_state_dict(edited)
    place = ("surgery", name, peak, config.sft.steps, seed)
    tables = evaluate_model(config, model, tokenizer, place)
    change = as_measurements([(*place, "weights", "relative_distance", (moved / whole) ** 0.5, len(chosen))])
    tables["measurements"] = pd.concat([tables["measurements"], change], ignore_index=True)
    return tables


def _edit(name: str, recipient: Tensor, donor: Tensor, part: str, top: float, tail: float, seed: int) -> Tensor:
    rank = min(recipient.shape)
    k_top = leading(top, rank) if top else 0
    draw = seed + crc32(name.encode())  # another for each matrix, the same on every run
    if part == "random":
        return random_rotation(recipient, donor, k_top, seed=draw)
    if part == "signs":
        return random_signs(recipient, donor, k_top, seed=draw)
    if part == "noise":
        return random_change(recipient, restore(recipient, donor, "vectors", k_top), seed=draw)
    return restore(recipient, donor, part, k_top, leading(tail, rank) if tail else 0)
