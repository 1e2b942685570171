"""Seconds a step of SFT of a real, small language model on CPUs, and what makes it fast, side by side in one process.

    python tests/benchmarks/training.py [STEPS] [PRESET]

The four ways alternate, step by step, so that other load falls on all. Their losses are printed too: the head that
reads answers alone gives the same ones; bfloat16 gives nearly the same.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import trl.trainer.utils
from transformers import PrinterCallback

from oodlib.config import load_config
from oodlib.models.loading import quiet
from oodlib.run import Run
from oodlib.training.sft import sft_trainer

WAYS = [(precision, head) for precision in ("float32", "bfloat16") for head in ("every token", "answers alone")]


def main(steps: int = 3, preset: str = "smollm2-cpu") -> None:
    quiet()
    seconds, losses = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(steps):
            for i, (precision, head) in enumerate(WAYS):
                changes = {"sft.steps": 1, "sft.checkpoints": [0, 1], "rl.starts": [1], "seed": turn}
                changes["machine.precision"] = precision
                trl.trainer.utils._use_triton = lambda device, answers=head == "answers alone": answers
                trainer = sft_trainer(Run(load_config(preset, changes), Path(folder) / f"{i}-{turn}"), turn)
                trainer.remove_callback(PrinterCallback)
                start = time.perf_counter()
                trainer.train()
                seconds[precision, head].append(time.perf_counter() - start)
                losses[precision, head] += [row["loss"] for row in trainer.state.log_history if "loss" in row]
                del trainer
    first = median(seconds[WAYS[0]])
    for way, times in seconds.items():
        shown = ", ".join(f"{loss:.4f}" for loss in losses[way])
        print(
            f"{way[0]:9} head: {way[1]:14} {median(times):6.1f} s a step ({min(times):.1f} to {max(times):.1f}), "
            f"{first / median(times):.1f} times as fast as the first; losses {shown}"
        )


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))
