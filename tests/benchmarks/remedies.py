"""Seconds a training step of SFT with each remedy, side by side in one process: python tests/benchmarks/remedies.py.

Turns of a few steps each go round and round, so that what else the machine does falls on all alike. Writes
outputs/campaign/step_times.csv.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from oodlib.analysis.sweep import FOLDER, Plan
from oodlib.run import Run
from oodlib.stages import quiet
from oodlib.training.mitigations import load_remedy
from oodlib.training.sft import sft_trainer

TRAINED = ("none", "rpsft", "kl", "lora")


def main(steps: int = 12, turns: int = 4) -> None:
    quiet()
    torch.set_num_threads(1)
    plan = Plan()
    regimes = plan.phases["remedies"]["regimes"]
    presets = {p.sft.mitigation: p for p in (plan.preset(r, 0) for r in regimes) if p.sft.mitigation in TRAINED}
    seconds: dict[str, list[float]] = {name: [] for name in presets}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns + 1):
            for name, config in presets.items():
                few = config.changed({"sft.steps": steps, "sft.checkpoints": [0, steps]})
                trainer = sft_trainer(Run(few, Path(folder) / f"{name}-{turn}"), 0, load_remedy(name))
                start = time.perf_counter()
                trainer.train()
                if turn:  # the first warms up
                    seconds[name].append((time.perf_counter() - start) / steps)
    plain = sorted(seconds["none"])[turns // 2]
    rows = []
    for name, found in seconds.items():
        middle = sorted(found)[turns // 2]
        rows.append((name, round(middle, 4), round(min(found), 4), round(max(found), 4), round(middle / plain, 2)))
    table = pd.DataFrame(rows, columns=["remedy", "seconds a step", "lowest", "highest", "times plain SFT"])
    print(table.to_string(index=False))
    table.to_csv(FOLDER / "step_times.csv", index=False)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
