"""Stage 3, rotation and surgery: what training did to singular values and vectors, and what undoing it does.

Rotation compares pairs of checkpoints matrix by matrix. Surgery puts singular values, singular vectors or whole
weights of the peak, or of other donors, back into the last SFT checkpoint and measures the edited model on every split.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from oodlib.inference.evaluation import evaluate_model
from oodlib.io import as_measurements
from oodlib.models.checkpoints import open_text
from oodlib.models.loading import load_model, load_weights, working_dtype
from oodlib.models.names import Place, matrices
from oodlib.models.weights import device
from oodlib.run import Run
from oodlib.spectral.angles import Comparison, compare
from oodlib.spectral.surgery import Edit
from oodlib.spectral.svd import count_of, spectrum


class Pair(NamedTuple):
    """Two checkpoints to compare, and what the pair is called in the tables."""

    arm: str
    from_step: int
    step: int
    before: Path
    after: Path
    by_index: bool = False  # also what became of each direction


def measure_rotation(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """Spectra of every weight matrix, compared along the run: base, peak, end, and each arm with its start.

    Table `rotation`, one row a number: arm, from_step, step say which pair; metric is `value_change` (relative,
    by index), `direction_left` or `direction_right` (radians, by index: how far the i-th singular vector
    turned), `angle_left` or `angle_right` (radians, principal angles of the leading `rotation.share`).
    """
    pairs = _pairs(run, seed, run.peak_step(seed))
    weights = {folder: open_text(folder) for pair in pairs for folder in (pair.before, pair.after)}
    frames: dict[Pair, list[pd.DataFrame]] = {pair: [] for pair in pairs}
    for name, place in matrices(weights[pairs[0].before].shapes).items():  # one at a time, for memory

        def read(folder: Path, name: str = name):
            return spectrum(weights[folder].tensor(name).to(device()), name)

        spectra = {folder: read(folder) for folder in dict.fromkeys(pair.before for pair in pairs)}
        for folder in dict.fromkeys(pair.after for pair in pairs):
            after = spectra.get(folder) or read(folder)
            for pair in (pair for pair in pairs if pair.after == folder):
                k = count_of(run.config.rotation.share, len(after.values))
                frames[pair].append(_rows(pair, compare(spectra[pair.before], after, k, name), place))
    rotation = pd.concat([frame for of_pair in frames.values() for frame in of_pair], ignore_index=True)
    rotation = rotation.assign(stage="rotation", seed=seed)
    by_matrix = rotation.groupby(["arm", "from_step", "step", "metric"], sort=False)["value"]
    rows = [
        ("rotation", *key[:3], seed, "weights", f"mean_{key[3]}", float(values.mean()), len(values))
        for key, values in by_matrix
    ]
    return {"rotation": rotation, "measurements": as_measurements(rows)}


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


def _rows(pair: Pair, both: Comparison, place: Place) -> pd.DataFrame:
    numbers = {"angle_left": both.angles_left, "angle_right": both.angles_right}
    numbers["value_change"] = both.relative_change if pair.by_index else both.relative_change[: both.k]
    if pair.by_index:
        numbers |= {"direction_left": both.left.directions(), "direction_right": both.right.directions()}
    frames = []
    for metric, values in numbers.items():
        columns = {"layer": place.layer, "module": place.module, "metric": metric, "index": range(len(values))}
        frames.append(pd.DataFrame({**columns, "value": np.float32(values)}))
    return pd.concat(frames, ignore_index=True).assign(arm=pair.arm, from_step=pair.from_step, step=pair.step)


def token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """The tokens that these words are. ValueError for words that are not one token each."""
    tokens = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    known = [len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in tokens]
    if strangers := [word for word, one in zip(words, known, strict=True) if not one]:
        raise ValueError(f"surgery.words: not one token of the model's tokenizer: {', '.join(map(repr, strangers))}")
    return [token for (token,) in tokens]


def operate(
    run: Run,
    seed: int,
    name: str,
    layers: int | None = None,
    words: Sequence[str] = (),
    draw: int = 0,
    donor: int | None = None,
    **options: Any,
) -> dict[str, pd.DataFrame]:
    """Edit the last SFT checkpoint (recipient) with another (donor), and measure the edited model.

    name: what the edit is called in the tables; their from_step is the donor's. donor: its step, None: the peak. Where
    that is the last checkpoint, there is nothing to put back and no row. layers: only the first so many. words: only
    their rows of embedding and head. draw: which of a null's draws. options: of `surgery.Edit` (part, of, top and tail
    as shares of the directions, embeddings).
    """
    config, donor = run.config, donor or run.peak_step(seed)
    if donor == config.sft.steps:
        return {"measurements": as_measurements([])}
    model, tokenizer = load_model(run.sft_weights(seed, config.sft.steps), to_train=True)
    recipient = model.state_dict()
    rows = token_ids(tokenizer, words) if words else None
    edit = Edit(layers=None if layers is None else range(layers), rows=rows, seed=1000 * seed + draw, **options)
    edited, chosen = edit.state(recipient, load_weights(run.sft_weights(seed, donor))), edit.chosen(recipient)
    moved = sum(float((edited[n] - recipient[n]).double().square().sum()) for n in chosen)
    whole = sum(float(recipient[n].double().square().sum()) for n in chosen)
    model.load_state_dict(edited)
    model.to(working_dtype(config.machine.precision))  # late, for an edit may change less than bfloat16 can hold
    place = ("surgery", name, donor, config.sft.steps, seed)
    tables = evaluate_model(config, model, tokenizer, place)
    change = as_measurements([(*place, "weights", "relative_distance", (moved / whole) ** 0.5, len(chosen))])
    tables["measurements"] = pd.concat([tables["measurements"], change], ignore_index=True)
    return tables
