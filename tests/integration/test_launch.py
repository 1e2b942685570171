"""Training in parts and in several processes: the same checkpoints and, but for rounding, the same numbers."""

import numpy as np
import pytest

from oodlib.config import load_config
from oodlib.models.loading import load_weights
from oodlib.run import Run
from oodlib.scale.launch import launch
from oodlib.training.arms import run_arm
from oodlib.training.setup import NoData
from oodlib.training.sft import train

DDP = {"machine.launch": "ddp", "machine.processes": 2}


def names(run):
    return {p.relative_to(run.checkpoints(10)) for p in run.checkpoints(10).rglob("*")}


def values(tables):
    return tables["measurements"]["value"].to_numpy()


def test_a_batch_in_parts_gives_the_same_training(tiny_run, tmp_path):
    whole, parts = (tiny_run({"out": str(tmp_path / f"m{m}"), "machine.micro_batch": m}) for m in (4, 1))
    np.testing.assert_allclose(values(train(whole, 10)), values(train(parts, 10)), rtol=1e-4)
    assert names(whole) == names(parts)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_rl_in_parts_learns_the_same(tiny_run, tmp_path, algorithm):
    changes = {"rl.algorithm": algorithm, "rl.steps": 4, "sft.learning_rate": 1e-3}
    whole, parts = (tiny_run({"out": str(tmp_path / f"m{m}"), "machine.micro_batch": m, **changes}) for m in (8, 4))
    losses = []
    for run in (whole, parts):
        train(run, 10)
        table = run_arm(run, 10, "rl", 4)["measurements"]
        losses.append(table[(table["split"] == "train") & table["metric"].isin(["reward", "entropy"])]["value"])
    np.testing.assert_allclose(*losses, rtol=2e-2)


def test_batches_and_configurations_that_cannot_be(tiny_run, monkeypatch):
    with pytest.raises(ValueError, match=r"'warp'.*ddp, fsdp2"):
        launch(Run(load_config("smoke", {"machine.launch": "warp"})), "oodlib.training.sft:learn", 10)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"batch of 4 .* 3 processes"):
        train(tiny_run(), 10)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tiny_run, tmp_path):
    one = tiny_run({"out": str(tmp_path / "one")})
    two = tiny_run({"out": str(tmp_path / "two"), **DDP})
    np.testing.assert_allclose(values(train(one, 10)), values(train(two, 10)), rtol=1e-4)
    assert names(one) == names(two)
    for name, weight in load_weights(one.sft_weights(10, 4)).items():
        assert abs(load_weights(two.sft_weights(10, 4))[name] - weight).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_two_processes_play_a_batch_together(tiny_run, algorithm):
    run = tiny_run({**DDP, "rl.algorithm": algorithm, "rl.steps": 4})
    train(run, 10)
    tables = run_arm(run, 10, "rl", 4)
    cycle = run.config.rl.updates_per_batch * run.config.rl.epochs
    played = tables["rollouts"]
    assert len(played) == 4 // cycle * run.config.rl.prompts * run.config.rl.samples
    assert (played.groupby(["update", "group"]).size() == run.config.rl.samples).all()
    assert played["advantage"].abs().gt(0).any()


@pytest.mark.slow
def test_what_fails_in_a_process_is_reported(tiny_run):
    run = tiny_run(DDP)
    with pytest.raises(RuntimeError, match=r"process \d: FileNotFoundError|process \d: OSError|process \d: ValueError"):
        launch(run, "oodlib.training.arms:learn", 10, arm="rl", from_step=4)  # there is no SFT yet
    mute = tiny_run({**DDP, "task.max_new_tokens": 1})  # no answer is right
    train(mute, 10)
    with pytest.raises(NoData):
        launch(mute, "oodlib.training.arms:learn", 10, arm="rejection_sampling", from_step=4)
