"""Throughput of evaluation: batched generation against one prompt at a time, side by side in one process.

    python tests/benchmarks/evaluation.py [PROBLEMS]

Both give the same answers; the two alternate, so that a machine that slows down slows both.
"""

import sys
import time

from oodlib.inference.episodes import generate, play
from oodlib.models.loading import load_model, quiet
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task


def main(problems: int = 796, single: int = 24) -> None:
    quiet()
    task = get_task("general_points")
    model, tokenizer = load_model(model_folder("tiny"))
    hands = task.split("ood")[:problems]
    prompts = [task.prompt(p, "compact") for p in hands]
    generate(model, tokenizer, prompts[:2], 32)
    rates = {"one at a time": [], "batched": []}
    for part in range(3):
        chosen = prompts[part * single : (part + 1) * single]
        start = time.perf_counter()
        alone = [generate(model, tokenizer, [p], 32)[0] for p in chosen]
        rates["one at a time"].append(single / (time.perf_counter() - start))
        start = time.perf_counter()
        together = generate(model, tokenizer, prompts, 32)
        rates["batched"].append(len(prompts) / (time.perf_counter() - start))
        assert alone == together[part * single : (part + 1) * single], "batching changed an answer"
    for name, values in rates.items():
        print(f"{name:14} {sorted(values)[1]:8.1f} problems/s (median of 3; {min(values):.1f} to {max(values):.1f})")
    ratios = sorted(b / a for a, b in zip(rates["one at a time"], rates["batched"], strict=True))
    print(f"batched is {ratios[1]:.1f} times as fast (from {ratios[0]:.1f} to {ratios[2]:.1f})")
    for name in ("dynamic", "continuous"):
        start = time.perf_counter()
        same = generate(model, tokenizer, prompts, 32, generator=name) == together
        rate = len(prompts) / (time.perf_counter() - start)
        print(f"generator {name:11} {rate:8.1f} problems/s, {'the same' if same else 'other'} answers")
    times = {}
    for attempts in (1, 5, 1, 5):
        start = time.perf_counter()
        episodes = play(model, tokenizer, task, hands, "compact", 32, attempts)
        times.setdefault(attempts, []).append(time.perf_counter() - start)
    right = sum(e.solved for e in episodes)
    print(f"5 attempts take {min(times[5]) / min(times[1]):.1f} times as long as 1 ({right} of {len(hands)} right)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
