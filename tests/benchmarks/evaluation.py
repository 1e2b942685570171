"""Throughput of evaluation: batched generation against one prompt at a time, side by side in one process.

    python tests/benchmarks/evaluation.py [HANDS]

Both give the same answers; the two take turns, so that a machine that slows down slows both.
"""

import sys
import time

from oodlib.inference.episodes import generate, play
from oodlib.inference.generation import ENGINES
from oodlib.models.loading import load_model, model_folder
from oodlib.stages import quiet
from oodlib.tasks.base import get_task


def main(hands: int = 796, single: int = 24) -> None:
    quiet()
    task = get_task("general_points")
    model, tokenizer = load_model(model_folder("tiny"))
    prompts = [task.prompt(p, "compact") for p in task.split("ood")][:hands]
    generate(model, tokenizer, prompts[:2], 32)
    rates = {"one at a time": [], "batched": []}
    for turn in range(3):
        chosen = prompts[turn * single : (turn + 1) * single]
        start = time.perf_counter()
        alone = [generate(model, tokenizer, [p], 32)[0] for p in chosen]
        rates["one at a time"].append(single / (time.perf_counter() - start))
        start = time.perf_counter()
        together = generate(model, tokenizer, prompts, 32)
        rates["batched"].append(len(prompts) / (time.perf_counter() - start))
        assert alone == together[turn * single : (turn + 1) * single], "batching changed an answer"
    for name, found in rates.items():
        print(f"{name:14} {sorted(found)[1]:8.1f} hands/s (median of 3; {min(found):.1f} to {max(found):.1f})")
    ratios = sorted(b / a for a, b in zip(rates["one at a time"], rates["batched"], strict=True))
    print(f"batched is {ratios[1]:.1f} times as fast (turn by turn: {', '.join(f'{r:.1f}' for r in ratios)})")
    for engine in ENGINES:
        start = time.perf_counter()
        same = generate(model, tokenizer, prompts, 32, engine=engine) == together
        said = "the same answers" if same else "other answers"
        print(f"engine {engine:11} {len(prompts) / (time.perf_counter() - start):8.1f} hands/s, {said}")
    times = {}
    for tries in (1, 5, 1, 5):
        start = time.perf_counter()
        episodes = play(model, tokenizer, task, task.split("ood")[:hands], "compact", 32, tries)
        times.setdefault(tries, []).append(time.perf_counter() - start)
    right = sum(e.solved for e in episodes)
    print(f"5 tries take {min(times[5]) / min(times[1]):.1f} times as long as 1 ({right} of {hands} hands right)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
