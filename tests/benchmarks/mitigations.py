"""Seconds a training step of SFT with each mitigation, in one process: python tests/benchmarks/mitigations.py.

Rounds of a few steps each alternate between the mitigations, so that other load on the machine falls on all alike.
Writes outputs/sweep/step_times.csv.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from oodlib.analysis.sweep import Sweep
from oodlib.run import Run
from oodlib.training.sft import sft_trainer

TRAINED = ("none", "rpsft_released")


def main(steps: int = 12, rounds: int = 4) -> None:
    torch.set_num_threads(1)
    sweep = Sweep()
    conditions = sweep.plan.names("mitigations")
    configs = [sweep.plan.config(name, 0) for name in reversed(conditions)]  # plain SFT, the first, comes last
    seconds: dict[str, list[float]] = {name: [] for name in TRAINED}
    with tempfile.TemporaryDirectory() as folder:
        by_mitigation = {config.sft.mitigation: config for config in configs}
        for turn in range(rounds + 1):
            for name in TRAINED:
                few = by_mitigation[name].changed({"sft.steps": steps, "sft.checkpoints": [0, steps]})
                trainer = sft_trainer(Run(few, Path(folder) / f"{name}-{turn}"), 0)
                start = time.perf_counter()
                trainer.train()
                if turn:  # the first round warms up
                    seconds[name].append((time.perf_counter() - start) / steps)
    plain = median(seconds["none"])
    rows = []
    for name, times in seconds.items():
        numbers = (median(times), min(times), max(times))
        rows.append((name, *(round(x, 4) for x in numbers), round(numbers[0] / plain, 2)))
    table = pd.DataFrame(rows, columns=["mitigation", "seconds a step", "lowest", "highest", "times plain SFT"])
    print(table.to_string(index=False))
    table.to_csv(sweep.folder / "step_times.csv", index=False)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
