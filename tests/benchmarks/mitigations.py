"""Seconds a training step of SFT with each mitigation, in one process: python tests/benchmarks/mitigations.py.

Rounds of a few steps each alternate between the mitigations, so that other load on the machine falls on all; those
that change the rate or edit finished checkpoints train as plain SFT does, and get its time. Writes
outputs/mitigations/step_times.csv.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from oodlib.analysis.plan import Plan
from oodlib.analysis.sweep import Sweep
from oodlib.registry import MITIGATIONS
from oodlib.run import Run
from oodlib.training.sft import sft_trainer


def main(steps: int = 12, rounds: int = 4) -> None:
    torch.set_num_threads(1)
    sweep = Sweep(Plan("mitigations"))
    about = sweep.plan.mitigations("search")
    configs = {}
    for condition, mitigation in about["mitigation"].drop_duplicates().items():
        config = sweep.plan.config(condition, 0)
        name = config.sft.mitigation
        if (name != "none" and not MITIGATIONS.get(name).edit) or condition == about.index[0]:
            configs[mitigation] = config.changed(
                {"sft.steps": steps, "sft.checkpoints": [0, steps], "rl.starts": [steps]}
            )
    seconds: dict[str, list[float]] = {mitigation: [] for mitigation in configs}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for i, (mitigation, config) in enumerate(configs.items()):
                trainer = sft_trainer(Run(config, Path(folder) / f"{i}-{turn}"), 0)
                start = time.perf_counter()
                trainer.train()
                if turn:  # the first round warms up
                    seconds[mitigation].append((time.perf_counter() - start) / steps)
    own = seconds[about["mitigation"].iloc[0]]
    plain, rows = median(own), []
    for mitigation in about["mitigation"].unique():
        times = seconds.get(mitigation, own)
        numbers = (median(times), min(times), max(times))
        rows.append((mitigation, *(round(x, 4) for x in numbers), round(numbers[0] / plain, 2)))
    table = pd.DataFrame(rows, columns=["mitigation", "seconds a step", "lowest", "highest", "times plain SFT"])
    print(table.to_string(index=False))
    sweep.folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(sweep.folder / "step_times.csv", index=False)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
