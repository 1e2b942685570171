"""A made-up table of the sweep: its conditions, starts and arms, with effects that a test chooses."""

import numpy as np
import pandas as pd

from oodlib.analysis.plan import Plan
from oodlib.io import COLUMNS
from oodlib.tasks import get_task

SPLITS = get_task("general_points").splits
FALLS = {  # of each split from peak to end, by condition; a peak of .7
    "believer": 0.5, "reader": 0.4, "cosine": 0.2, "high-rate": 0.65, "averaging": 0.45, "rpsft": 0.3,
}  # fmt: skip
DRIFTED = ("kl_from_base", "kl_to_base", "entropy", "margin", "cka", "mmd", "frechet", "pc1", "pc2", "cka_1", "cka_2")
SHARES = {8: 0.0, 50: 0.3, 100: 0.55, 200: 0.85, 300: 1.0}  # of the fall, by step
OF = {"id": -0.3, "new_rule": 0.3, "new_numbers": 0.9, "ood": 1.0}  # of the fall, by split
GAINS = {  # points of OOD accuracy, by arm: what it has of its own, and its share of what can be annealed
    "rl": (0.0, 0.7), "sft_continued": (0.0, 1.2), "rejection_sampling": (-0.01, 0.4),
    "rejection_sampling_fresh": (0.0, 0.5), "averaging": (0.0, 0.3), "negatives": (0.0, 0.2), "ppo": (0.01, 0.7),
    "reinforce": (0.0, 0.6), "entropy_bonus": (0.0, 0.9), "slow_rl": (0.0, 0.9), "sft_nearest": (0.0, 1.1),
}  # fmt: skip


def fall_of(condition):
    """Of a condition that FALLS lacks, from its name alone; less at a larger strength."""
    name, _, strength = condition.partition("@")
    fall = FALLS.get(name, FALLS["believer"] * (1 - sum(map(ord, name)) % 7 / 10 * (name != "plain")))
    return fall * (0.8 if strength and float(strength) >= 0.05 else 1)


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
                fall = fall_of(condition)
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
                                for step in (40, 80):
                                    part_of = gain * step / 80 + rng.normal(0, noise)
                                    add(condition, ("rl", arm, start, step), seed, split, level + part_of)
                for step, share in SHARES.items():
                    turned = 0.2 * fall * np.sqrt(step / 300) + rng.normal(0, 0.001)
                    rows.append((condition, "sft", "sft", 0, step, seed, "weights", "rotation", turned, 28))
                    loss = 1.5 - 0.5 * share + rng.normal(0, 0.01)
                    rows.append((condition, "sft", "sft", 0, step, seed, "id", "loss", loss, 800))
                arms = [("rl", *about["baselines"]) if about.get("starts") else ()][0]
                places = [("sft", 0, step, share) for step, share in SHARES.items()]
                places += [(arm, start, 80, SHARES[start]) for arm in arms for start in about["starts"]]
                for arm, start, step, share in places if about.get("drift") else ():
                    moved = fall * share + abs(rng.normal(0, 0.02))
                    for i, metric in enumerate(DRIFTED):
                        value = moved * (1 + rng.normal(0, 0.1 * i))
                        rows.append((condition, "drift", arm, start, step, seed, "id", metric, value, 100))
                    for metric in ("weight_change", "angle", "value_change"):
                        value = moved * (1 + rng.normal(0, 0.2))
                        rows.append((condition, "drift", arm, start, step, seed, "weights", metric, value, 60))
                for start in about.get("starts", []):
                    for end, value in (("first", -1.0), ("last", 0.5 + rng.normal(0, 0.1))):
                        rows.append((condition, "rl", "rl", start, 80, seed, "train", f"reward_{end}", value, 8))
    table = pd.DataFrame(rows, columns=["condition", *COLUMNS])
    return table.drop_duplicates(["condition", *COLUMNS[:-2]], ignore_index=True)


def a_sweep(folder, plan="sweep", phases=("confirm",), seeds=None, **options):
    """The folder of a sweep that holds such tables for some phases, on some seeds of each, and their manifest."""
    from oodlib.analysis.sweep import Sweep
    from oodlib.io import write_json, write_table

    sweep = Sweep(Plan(plan), folder)
    tables = {
        phase: made_up((seeds or {}).get(phase, sweep.plan.seeds(phase)), phase=phase, plan=sweep.plan, **options)
        for phase in phases
    }
    keys = ["condition", *COLUMNS[:-2]]
    write_table(sweep.folder / "measurements.csv", pd.concat(tables.values()).drop_duplicates(keys))
    cells = {
        cell.name: {"mark": cell.mark} for phase, table in tables.items() for cell in sweep.plan.cells(phase)
        if cell.config.seed in set(table["seed"])
    }  # fmt: skip
    write_json(sweep.folder / "manifest.json", {"cells": cells})
    return sweep
