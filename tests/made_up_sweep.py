"""A made-up table of the sweep: its conditions, starts and arms, with effects that a test chooses."""

import numpy as np
import pandas as pd

from oodlib.analysis.sweep import Plan
from oodlib.io import COLUMNS
from oodlib.tasks import get_task

SPLITS = get_task("general_points").splits
FALLS = {  # of each split from peak to end, by condition; a peak of .7
    "believer": 0.5, "reader": 0.4, "cosine": 0.2, "high-rate": 0.65, "low-rate": 0.12, "averaging": 0.45, "rpsft": 0.3,
    "rpsft-strong": 0.2,
}  # fmt: skip
SHARES = {8: 0.0, 50: 0.3, 100: 0.55, 200: 0.85, 300: 1.0}  # of the fall, by step
OF = {"id": -0.3, "new_rule": 0.3, "new_numbers": 0.9, "ood": 1.0}  # of the fall, by split
GAINS = {  # points of OOD accuracy, by arm: what it has of its own, and its share of what can be annealed
    "rl": (0.0, 0.7), "sft_continued": (0.0, 1.2), "rejection_sampling": (-0.01, 0.4),
    "rejection_sampling_fresh": (0.0, 0.5), "averaging": (0.0, 0.3), "negatives": (0.0, 0.2), "ppo": (0.01, 0.7),
    "entropy_bonus": (0.0, 0.9), "slow_rl": (0.0, 0.9),
}  # fmt: skip


def made_up(seeds=range(30, 36), gains=None, phase="confirm", noise=0.008, plan=None, without=()):
    """Every block of a phase on these seeds; `gains`: other entries of GAINS; `without`: arms that were not run."""
    rng, plan, gains, rows = np.random.default_rng(0), plan or Plan(), {**GAINS, **(gains or {})}, []

    def add(condition, place, seed, split, accuracy):
        accuracy = min(max(accuracy, 0.0), 1.0)
        read = min(1.0, accuracy + 0.2)
        numbers = {
            "accuracy": accuracy, "wrong_value": (1 - accuracy) / 2, "wrong_numbers": (1 - accuracy) / 2,
            "numbers_read": read, "old_rule": 0.0 if split in ("id", "new_numbers") else 0.3 * (1 - accuracy),
        }  # fmt: skip
        rows.extend((condition, *place, seed, split, metric, value, 800) for metric, value in numbers.items())

    for seed in seeds:
        luck = {}
        for block in plan.phases[phase]["blocks"]:
            about = plan.blocks[block]
            for condition in about["conditions"]:
                fall = FALLS[condition]
                for split, part in OF.items():
                    if (condition, split) not in luck:
                        for step, share in {0: None, **SHARES}.items():
                            own = rng.normal(0, 2 * noise)
                            level = 0.0 if step == 0 else 0.65 - part * fall * share + own
                            luck[condition, split], luck[condition, split, step] = True, own
                            add(condition, ("sft", "sft", 0, step), seed, split, level)
                    for start in about.get("starts", []):
                        can = (
                            0.0 if (condition, start) == ("cosine", 300) else 0.08 * np.sqrt(SHARES[start]) * fall / 0.5
                        )
                        for arm in ("rl", *about["baselines"]):
                            if arm not in without:
                                mine, of = gains[arm]
                                gain = (mine + of * can) * abs(part) - luck[condition, split, start] / 2
                                level = 0.65 - part * fall * SHARES[start] + luck[condition, split, start]
                                place = ("rl", arm, start, 80)
                                add(condition, place, seed, split, level + gain + rng.normal(0, noise))
                for step in (8, 50, 100, 200, 300):
                    turned = 0.2 * FALLS[condition] * np.sqrt(step / 300) + rng.normal(0, 0.001)
                    rows.append((condition, "sft", "sft", 0, step, seed, "weights", "rotation", turned, 28))
                for start in about.get("starts", []):
                    for end, value in (("first", -1.0), ("last", 0.5 + rng.normal(0, 0.1))):
                        rows.append((condition, "rl", "rl", start, 80, seed, "train", f"reward_{end}", value, 8))
    table = pd.DataFrame(rows, columns=["condition", *COLUMNS])
    return table.drop_duplicates(["condition", *COLUMNS[:-2]], ignore_index=True)


def a_sweep(folder, **options):
    """The folder of a sweep that holds such tables for the phases confirm and mitigations, and their manifest."""
    from oodlib.analysis.sweep import Sweep
    from oodlib.io import write_json, write_table

    sweep = Sweep(folder=folder)
    phases = {phase: made_up(phase=phase, **options) for phase in ("confirm", "mitigations")}
    keys = ["condition", *COLUMNS[:-2]]
    write_table(sweep.folder / "measurements.csv", pd.concat(phases.values()).drop_duplicates(keys))
    cells = [
        cell.name for phase, table in phases.items() for cell in sweep.plan.cells(phase)
        if cell.config.seed in set(table["seed"])
    ]  # fmt: skip
    write_json(sweep.folder / "manifest.json", {"cells": {name: {"mark": "made up"} for name in cells}})
    return sweep
