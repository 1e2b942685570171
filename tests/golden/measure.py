"""The golden run: a few numbers of every stage, so small that any processor gives the same five digits.

python tests/golden/measure.py     writes golden.json again: only when numbers are MEANT to change,
                                   together with the method's version in oodlib/run.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from oodlib.config import load_config
from oodlib.inference.episodes import play
from oodlib.inference.evaluation import evaluate, summarise
from oodlib.io import write_json
from oodlib.models.loading import load_model, load_weights, quiet
from oodlib.models.sources import model_folder
from oodlib.run import Run
from oodlib.spectral import compare, restore
from oodlib.training.rl import advantages
from oodlib.training.sft import train
from oodlib.training.trainer import demonstrations

FILE = Path(__file__).with_name("golden.json")
MATRICES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight")


def measure() -> dict:
    """Stage -> what it gives: texts and outcomes as they are, numbers as floats."""
    quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return {"task": task(), "sft": sft(Path(folder)), "rl": rl(), "rotation": rotation(), "surgery": surgery()}
    finally:
        torch.set_num_threads(threads)


def task() -> dict:
    config = load_config("smoke", {"machine.reference": False})
    run = Run(config)
    data, splits = demonstrations(run.task, config, 10, 3), run.task.splits.names
    dealt = {s: [run.task.label(p) for p in run.task.sample(np.random.default_rng(1), s, 4)] for s in splits}
    base = load_model(model_folder("tiny"))
    answered = {s: evaluate(*base, run.task, s, "compact", 32, loss=True, every=40) for s in splits}
    dialogue = run.task.pretraining_dialogue(np.random.default_rng(2), 1)
    return {
        "demonstrations": [row["prompt"] + row["completion"] for row in data],
        "dealt": dealt,
        "pretraining": dialogue,
        "outcomes": {split: judged["outcome"].astype(str).tolist() for split, judged in answered.items()},
        "summary": {split: summarise(judged) for split, judged in answered.items()},
    }


def sft(folder: Path) -> dict:
    changes = {"sft.steps": 3, "sft.checkpoints": [0, 3], "sft.batch_size": 8, "rl.starts": [0], "out": str(folder)}
    table = train(Run(load_config("smoke", changes)), 10)["measurements"]
    return {f"{row.split} {row.metric} {row.step}": row.value for row in table.itertuples()}


def rl() -> dict:
    config = load_config("smoke", {"eval.attempts": 2})
    problems = Run(config).task.split("id")[:8]
    model, tokenizer = load_model(model_folder("tiny"))
    episodes = play(model, tokenizer, Run(config).task, problems, "compact", 32, attempts=2)
    rewards = np.array([5.0, -1.0, -1.0, -3.0, 2.0, 2.0, 2.0, -2.0])
    return {
        "second attempts": [[v.outcome for v in e.verdicts] for e in episodes],
        "GRPO's advantages": advantages(rewards, config).tolist(),
        "RLOO's advantages": advantages(rewards, load_config("smoke", {"rl.algorithm": "rloo"})).tolist(),
    }


def rotation() -> dict:
    weights = load_weights(model_folder("tiny"))
    found = {}
    for name in MATRICES:
        before = weights[name].double()
        noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        both = compare(before, before + 0.02 * noise, 16, name)
        found[name] = {
            "angles": [both.angles_left[[0, 7, 15]].tolist(), both.angles_right[[0, 7, 15]].tolist()],
            "values": both.values1[[0, 7, 15]].tolist(),
            "relative change": both.relative_change[[0, 7, 15]].tolist(),
            "Wedin's bound": both.wedin_bound(4),
        }
    return found


def surgery() -> dict:
    weights = load_weights(model_folder("tiny"))
    recipient, donor = (weights[f"model.layers.{i}.self_attn.q_proj.weight"] for i in (0, 1))
    found = {}
    for part in ("vectors", "values"):
        edited = restore(recipient, donor, part, 32, 8)
        found[part] = [float((edited - recipient).double().norm()), *edited[0, :3].tolist()]
    return found


if __name__ == "__main__":
    write_json(FILE, json.loads(json.dumps(measure())))
