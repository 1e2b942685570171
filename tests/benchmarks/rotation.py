"""The rotation engine against the published analysis, side by side in one process.

    python tests/benchmarks/rotation.py [--rounds 3] [--modeldelta] [--callback] [--memory]

Published, after the paper's description: full thin SVD in float32 of base, checkpoint and their difference; principal
angles of the leading 768 (or all) directions as arccos of the singular values of the cross product; projector distance
by forming the projectors. The engine: `spectra.compare`, the same quantities in float64. The two take turns. Errors are
against SVDs in float64 (angles by sines and cosines). The floor is what the engine's operations would take at the speed
of this machine's float64 matrix product, and its bytes at that of a copy.

--modeldelta (pip install modeldelta) also times that program as a whole process against `oodlib compare`, on one pair
of checkpoints of SmolLM2-135M's shapes; it measures norms and the spectrum of the difference, and no rotation.
--callback times RotationCallback at its default interval in SFT of the tiny model. --memory compares two
matrices of Qwen2.5-7B's largest shape through `oodlib compare` and prints the process's peak.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from oodlib.spectral.svd import compare, principal_angles

SHAPES = {
    "SmolLM2-135M": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
    "Qwen2.5-0.5B": [(896, 896), (128, 896), (4864, 896), (896, 4864)],
    "one more": [(1024, 4096)],
}
LARGE = {"Qwen2.5-7B": [(3584, 3584), (512, 3584), (18944, 3584), (3584, 18944)]}
LEADING = 768


def pair(shape: tuple[int, int], device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights with a decaying spectrum, and the same after a small change, part of it of low rank."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = shape
    decay = 1 / (1 + 20 * torch.arange(cols) / cols)
    base = torch.randn(rows, cols, generator=generator) * decay / rows**0.5
    noise = torch.randn(rows, cols, generator=generator)
    low_rank = torch.randn(rows, 8, generator=generator) @ torch.randn(8, cols, generator=generator)
    change = noise / noise.norm() + low_rank / low_rank.norm()
    return base.to(device), (base + 0.01 * base.norm() * change).to(device)


def published(W0: torch.Tensor, W1: torch.Tensor, k: int) -> dict[str, np.ndarray]:
    (u0, s0, v0), (u1, s1, v1), (_, d, _) = (torch.linalg.svd(W, full_matrices=False) for W in (W0, W1, W1 - W0))
    found = {"values": torch.cat([s0, s1]), "change": d}
    for side, a, b in (("left", u0[:, :k], u1[:, :k]), ("right", v0[:k].T, v1[:k].T)):
        found[f"angles {side}"] = torch.arccos(torch.linalg.svdvals(a.T @ b).clamp(-1, 1)).flip(0).sort().values
        found[f"projector {side}"] = torch.linalg.matrix_norm(a @ a.T - b @ b.T)
    return {name: value.cpu().numpy() for name, value in found.items()}


def engine(W0: torch.Tensor, W1: torch.Tensor, k: int) -> dict[str, np.ndarray]:
    c = compare(W0, W1, k)
    found = {"values": np.r_[c.values0, c.values1], "change": c.change}
    for side, angles in (("left", c.angles_left), ("right", c.angles_right)):
        found[f"angles {side}"], found[f"projector {side}"] = angles, 2**0.5 * np.linalg.norm(np.sin(angles))
    return found


def exact(W0: torch.Tensor, W1: torch.Tensor, k: int) -> dict[str, np.ndarray]:
    W0, W1 = W0.double(), W1.double()
    (u0, s0, v0), (u1, s1, v1) = (torch.linalg.svd(W, full_matrices=False) for W in (W0, W1))
    found = {"values": torch.cat([s0, s1]).cpu().numpy(), "change": torch.linalg.svdvals(W1 - W0).cpu().numpy()}
    for side, a, b in (("left", u0[:, :k], u1[:, :k]), ("right", v0[:k].T, v1[:k].T)):
        angles = principal_angles(a, b)
        found[f"angles {side}"], found[f"projector {side}"] = angles, 2**0.5 * np.linalg.norm(np.sin(angles))
    return found


def timed(work: Callable[[], dict]) -> tuple[dict, float, float]:
    """What `work` gives, its seconds, and the MiB of memory that it took beyond what was held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held, start = torch.cuda.memory_allocated(), time.perf_counter()
        found = work()
        torch.cuda.synchronize()
        return found, time.perf_counter() - start, (torch.cuda.max_memory_allocated() - held) / 2**20
    process, stop, peak = psutil.Process(), threading.Event(), [0]
    held = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    return found, seconds, max(0, peak[0] - held) / 2**20


def floor(shape: tuple[int, int], k: int, rate: float, copying: float) -> float:
    """Seconds of the engine's operations at `rate` a second, and of its bytes at `copying` a second.

    Operations: two half products and a whole one of the longer side, two symmetric eigenproblems with vectors
    (tridiagonal form 4/3 r^3, divide and conquer up to 8/3 r^3, back-transformation 2 r^3), one without, and some
    products [r, r]. Bytes: both matrices read in float32; the two and their difference written in float64, and read.
    """
    r, n = min(shape), max(shape)
    operations = 4 * r * r * n + (2 * 6 + 4 / 3) * r**3 + 8 * r * r * k
    return operations / rate + (2 * 4 + 3 * 2 * 8) * r * n / copying


def speeds(device: str) -> tuple[float, float]:
    """Operations a second of a float64 product, and bytes a second (read and written) of a copy."""
    A = torch.randn(1024, 1024, dtype=torch.float64, device=device)
    product = min(timed(lambda: [A @ A for _ in range(5)])[1] for _ in range(3))
    B, C = torch.ones(2**24, dtype=torch.float64, device=device), torch.ones(2**24, dtype=torch.float64, device=device)
    copy = min(timed(lambda: C.copy_(B))[1] for _ in range(3))
    return 5 * 2 * 1024**3 / product, 2 * 8 * 2**24 / copy


def shapes(rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = speeds(device)
    print(
        f"{device}, {torch.get_num_threads()} threads, float64 product {rates[0] / 1e9:.0f} GFLOP/s, "
        f"copy {rates[1] / 1e9:.0f} GB/s"
    )
    print(f"{'shape':>12} {'k':>4} {'published':>10} {'engine':>8} {'faster':>7} {'floor':>7}  MiB published/engine")
    ratios, wide, at_floor = [], [], []
    for model, listed in (SHAPES | (LARGE if device == "cuda" else {})).items():
        for shape in listed:
            W0, W1 = pair(shape, device)
            k = min(LEADING, *shape)
            times: dict[str, list[float]] = {"published": [], "engine": []}
            memory, found = {}, {}
            for _ in range(rounds):
                for name, way in (("published", published), ("engine", engine)):
                    found[name], seconds, memory[name] = timed(lambda way=way, a=W0, b=W1, k=k: way(a, b, k))
                    times[name].append(seconds)
            slow, fast = (min(times[name]) for name in times)
            least = floor(shape, k, *rates)
            ratios.append(slow / fast)
            at_floor.append(slow / least)
            if max(shape) > 2 * min(shape):
                wide.append(slow / fast)
            print(
                f"{shape[0]:>6}x{shape[1]:<5} {k:>4} {slow:>9.3f}s {fast:>7.3f}s {slow / fast:>6.1f}x "
                f"{fast / least:>6.1f}x  {memory['published']:.0f}/{memory['engine']:.0f}  ({model})"
            )
            truth = exact(W0, W1, k)
            worst = {way: {q: float(np.abs(found[way][q] - truth[q]).max()) for q in truth} for way in found}
            for quantity in truth:
                a, b = worst["published"][quantity], worst["engine"][quantity]
                flag = "" if b <= a else "   WORSE"
                print(f"{'':>14}{quantity:<16} error {a:.1e} published, {b:.1e} engine{flag}")
    mean, bound = (np.exp(np.mean(np.log(x))) for x in (ratios, at_floor))
    print(f"geometric mean {mean:.1f}x; longer side over twice the shorter: {min(wide):.1f}x to {max(wide):.1f}x")
    print(f"at its floor the engine would be {bound:.1f}x as fast as the published way in the geometric mean")


def programs() -> None:
    """`oodlib compare` and modeldelta on one pair of checkpoints with SmolLM2-135M's shapes."""
    layer = {
        "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
        "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576),
        "mlp.down_proj": (576, 1536),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        before, after = {}, {}
        for number in range(30):
            for place, (name, shape) in enumerate(layer.items()):
                full = f"model.layers.{number}.{name}.weight"
                W0, W1 = pair(shape, "cpu", 10 * number + place)
                before[full], after[full] = W0.bfloat16(), W1.bfloat16()
        for name, weights in (("a", before), ("b", after)):
            (Path(folder) / name).mkdir()
            save_file(weights, Path(folder) / name / "model.safetensors", {"format": "pt"})
        a, b = (str(Path(folder) / name) for name in "ab")
        ours = [sys.executable, "-m", "oodlib.cli", "compare", a, b, "--out"]
        for name, command in (
            ("modeldelta", [sys.executable, "-m", "modeldelta", a, b, "-o", f"{folder}/report.html"]),
            ("oodlib compare", [*ours, f"{folder}/1"]),
            ("oodlib compare --no-null", [*ours, f"{folder}/2", "--no-null"]),
        ):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            print(f"{name:<26} {time.perf_counter() - start:6.1f} s")


def callback(steps: int = 100, turns: int = 3) -> None:
    """The share of the time of SFT's steps that the callback takes at its default interval; tiny model, one thread.

    The callback is timed within the run: two runs, with and without it, differ by more than it takes.
    """
    from transformers import PrinterCallback

    from oodlib.config import load_config
    from oodlib.run import Run
    from oodlib.spectral.callback import RotationCallback
    from oodlib.stages import quiet
    from oodlib.training.sft import sft_trainer

    class Timed(RotationCallback):
        seconds = 0.0

        def _timed(self, event: str, *given, **more) -> None:
            start = time.perf_counter()
            getattr(super(), event)(*given, **more)
            self.seconds += time.perf_counter() - start

        def on_train_begin(self, *given, **more) -> None:
            self._timed("on_train_begin", *given, **more)

        def on_step_end(self, *given, **more) -> None:
            self._timed("on_step_end", *given, **more)

        def on_train_end(self, *given, **more) -> None:
            self._timed("on_train_end", *given, **more)

    quiet()
    torch.set_num_threads(1)
    config = load_config("tiny", {"sft.steps": steps, "sft.checkpoints": [0, steps], "rl.starts": [steps]})
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            trainer = sft_trainer(Run(config, Path(folder) / str(turn)), 0, None)
            trainer.remove_callback(PrinterCallback)
            watcher = Timed(Path(folder) / f"{turn}.parquet")
            watcher.attach(trainer)
            start = time.perf_counter()
            trainer.train()
            whole = time.perf_counter() - start
            shares.append(watcher.seconds / (whole - watcher.seconds))
            print(
                f"{steps} steps of SFT: {whole - watcher.seconds:.1f} s, RotationCallback every {watcher.every}: "
                f"{watcher.seconds:.2f} s, {shares[-1]:+.1%}"
            )
    print(f"median {sorted(shares)[turns // 2]:+.1%}")


def memory() -> None:
    """Peak memory and time of the command on one pair of bfloat16 matrices [18944, 3584]."""
    with tempfile.TemporaryDirectory() as folder:
        for name, weight in zip("ab", pair((18944, 3584), "cpu"), strict=True):
            (Path(folder) / name).mkdir()
            tensors = {"model.layers.0.mlp.up_proj.weight": weight.bfloat16()}
            save_file(tensors, Path(folder) / name / "model.safetensors", {"format": "pt"})
        words = [sys.executable, "-m", "oodlib.cli", "compare", f"{folder}/a", f"{folder}/b", "--out", f"{folder}/out"]
        start, peak = time.perf_counter(), 0
        process = psutil.Popen(words, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
        print(f"18944x3584: {time.perf_counter() - start:.0f} s, at most {peak / 2**30:.1f} GiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("modeldelta", "callback", "memory"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if not (options.modeldelta or options.callback or options.memory):
        shapes(options.rounds)
    for wanted, work in ((options.modeldelta, programs), (options.callback, callback), (options.memory, memory)):
        if wanted:
            work()
