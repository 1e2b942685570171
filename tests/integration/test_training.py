"""Training: what each arm learns from, and that a run cut off in the middle ends as if it had not been."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import trl.trainer.utils
from transformers import TrainerCallback, set_seed

from oodlib import ensure
from oodlib.models.loading import MARK, load_model, load_weights
from oodlib.models.sources import model_folder
from oodlib.registry import BASELINES
from oodlib.tasks import get_task
from oodlib.training import trainer as trainer_module
from oodlib.training.arms import run_arm
from oodlib.training.baselines.rejection_sampling import correct_answers
from oodlib.training.record import ROLLOUTS
from oodlib.training.rl import advantages, make_trainer
from oodlib.training.setup import Setup
from oodlib.training.sft import sft_trainer, train
from oodlib.training.trainer import demonstrations, fit

TASK = get_task("general_points")


def setup_for(run, folder, seed=10):
    set_seed(seed)
    return Setup(*load_model(model_folder("tiny")), TASK, run.config, seed, folder)


class Crash(Exception):
    pass


class CrashAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Crash


def same_weights(a, b):
    a, b = load_weights(a), load_weights(b)
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_demonstrations_are_right_answers_under_the_id_rule(tiny_run):
    config = tiny_run().config
    data = demonstrations(TASK, config, 1, 40)
    assert data[:] == demonstrations(TASK, config, 1, 40)[:] != demonstrations(TASK, config, 2, 40)[:]
    for row in data:
        words = row["prompt"].split()
        assert [words[2], words[5], words[8]] == ["10", "10", "10"]
        problem = TASK.problem(words[11:15], {"J": 10, "Q": 10, "K": 10})
        assert TASK.verify(problem, row["completion"]).outcome == "correct"


def test_sft_keeps_the_checkpoints_that_were_asked_for(tiny_run):
    run = tiny_run()
    tables = train(run, 10)
    table, turned = tables["measurements"], tables["rotation"]
    loss, weights = (table[table["split"] == split] for split in ("train", "weights"))
    assert loss["step"].tolist() == [1, 2, 3, 4] and table["value"].gt(0).all()
    assert set(weights["step"]) == {2, 4} and set(weights["metric"]) == {"rotation", "value_change", "change_ratio"}
    one = turned[turned["step"] == 4]
    assert not one.duplicated(["layer", "module"]).any() and one["layer"].nunique() * one["module"].nunique() == len(
        one
    )
    whole = weights[(weights["step"] == 4) & (weights["metric"] == "rotation")]["value"].item()
    assert one["value"].mean() == pytest.approx(whole, rel=1e-5)
    for step in (2, 4):
        names = {p.name for p in run.sft_weights(10, step).iterdir()}
        assert {"model.safetensors", "tokenizer.json", MARK} <= names
        assert not names & {"optimizer.pt", "training_args.bin"}
    assert not same_weights(run.sft_weights(10, 2), run.sft_weights(10, 4))


def test_the_same_seed_gives_the_same_weights(tiny_run, tmp_path):
    a, b, c = (tiny_run({"out": str(tmp_path / name)}) for name in "abc")
    for run, seed in ((a, 10), (b, 10), (c, 11)):
        train(run, seed)
    assert same_weights(a.sft_weights(10, 4), b.sft_weights(10, 4))
    assert not same_weights(a.sft_weights(10, 4), c.sft_weights(11, 4))


def test_a_run_cut_off_after_its_last_checkpoint_still_has_the_last_rotation(tiny_run, monkeypatch):
    run = tiny_run()
    train(run, 10)
    save = trainer_module._Keeper.on_save

    def cut_off(self, args, state, *rest, **kwargs):
        save(self, args, state, *rest, **kwargs)
        if state.global_step == run.config.rl.steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module._Keeper, "on_save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_arm(run, 10, "rl", 4)
    rows = run_arm(run, 10, "rl", 4)["measurements"]
    assert rows.loc[rows["metric"] == "rotation", "step"].max() == run.config.rl.steps


@pytest.mark.parametrize("arm", ["rl", "rl with ppo", "rejection_sampling", "rejection_sampling_fresh"])
def test_an_arm_cut_off_goes_on_from_its_last_whole_checkpoint(tiny_run, tmp_path, arm):
    arm, _, algorithm = arm.partition(" with ")
    run = tiny_run(
        {"rl.steps": 4, "rl.starts": [4], "sft.steps": 4, "rl.algorithm": algorithm or "grpo", "rl.attempts": 2}
    )
    train(run, 10)
    start = run.sft_weights(10, 4)

    def trainer(folder):
        set_seed(10)
        make = make_trainer if arm == "rl" else BASELINES.get(arm).make_trainer
        return make(Setup(*load_model(start), TASK, run.config, 10, folder))

    log = fit(trainer(tmp_path / "whole"), tmp_path / "whole", [2, 4])
    broken = trainer(tmp_path / "cut")
    broken.add_callback(CrashAt(3))
    with pytest.raises(Crash):
        fit(broken, tmp_path / "cut", [2, 4])
    (tmp_path / "cut" / "checkpoint-3").mkdir()  # as if killed while saving
    again = fit(trainer(tmp_path / "cut"), tmp_path / "cut", [2, 4])
    assert not (tmp_path / "cut" / "checkpoint-3").exists()
    assert [row["step"] for row in again] == [row["step"] for row in log] == [1, 2, 3, 4]
    assert same_weights(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    if arm in ("rl", "rejection_sampling_fresh"):
        whole, cut = (pd.read_parquet(tmp_path / n / "checkpoint-4" / ROLLOUTS) for n in ("whole", "cut"))
        pd.testing.assert_frame_equal(whole, cut)
    third = fit(trainer(tmp_path / "cut"), tmp_path / "cut", [2, 4])
    assert len(third) == len(log), "a finished arm is read, not trained again"


def test_advantages_are_the_trainer_s(tiny_run, tmp_path):
    for algorithm in ("grpo", "rloo"):
        run = tiny_run({"rl.algorithm": algorithm, "rl.steps": 2})
        setup = setup_for(run, tmp_path / algorithm)
        trainer = make_trainer(setup)
        fit(trainer, setup.folder, [2])
        mine = pd.read_parquet(setup.folder / "checkpoint-2" / ROLLOUTS)
        theirs = np.array(list(trainer._logs["advantages"]))
        assert len(mine) == 2 * run.config.rl.samples_per_update == len(theirs)
        np.testing.assert_allclose(mine["advantage"], theirs, atol=1e-4)
        assert np.isfinite(mine["reward"]).all() and mine["group"].nunique() == run.config.rl.prompts


def test_advantages_of_a_group_by_hand(tiny_run):
    config = tiny_run({"rl.samples": 4}).config
    found = advantages(np.array([5.0, -1, -1, -3, 2, 2, 2, 2]), config)
    group = np.array([5.0, -1, -1, -3])
    np.testing.assert_allclose(found[:4], (group - 0) / (np.sqrt(np.sum(group**2) / 3) + 1e-4))
    np.testing.assert_allclose(found[4:], 0)
    rloo = advantages(np.array([5.0, -1, -1, -3]), config.changed({"rl.algorithm": "rloo"}))
    np.testing.assert_allclose(rloo, [5 + 5 / 3, -1 - 1 / 3, -1 - 1 / 3, -3 - 1])


def test_rejection_sampling_learns_from_right_answers_alone(tiny_run, tmp_path):
    run = tiny_run()
    train(run, 10)
    model, tokenizer = load_model(run.sft_weights(10, 4))
    setup = Setup(model, tokenizer, TASK, run.config, 10, tmp_path)
    try:
        data = correct_answers(setup)
    except RuntimeError as error:
        assert "none of" in str(error)
        return
    for row in data:
        own = [i for i, mine in zip(row["input_ids"], row["completion_mask"], strict=True) if mine]
        cards = tokenizer.decode(row["input_ids"]).split()[11:15]
        problem = TASK.problem(cards, {"J": 10, "Q": 10, "K": 10})
        assert TASK.verify(problem, tokenizer.decode(own)).outcome == "correct"
        assert own[-1] == tokenizer.eos_token_id
    assert len(data) == setup.samples


def test_stages_run_once_and_are_then_loaded(tiny_run, capsys):
    run = tiny_run({"rl.baselines": [], "surgery.embeddings": False, "surgery.draws": 0})
    ensure(run, "surgery")  # needs sft, which is run first
    assert "surgery: run in" in capsys.readouterr().out
    table = run.table("measurements", "surgery")
    assert set(table["metric"]) >= {"accuracy", "relative_distance"} and set(table["split"]) >= {"id", "ood"}
    again = tiny_run({"rl.baselines": [], "surgery.embeddings": False, "surgery.draws": 0})
    shutil.rmtree(run.folder / "checkpoints")
    ensure(again, "sft")
    ensure(again, "surgery")
    assert capsys.readouterr().out.count("already done") == 2
    pd.testing.assert_frame_equal(table, again.table("measurements", "surgery"))


def test_run_arm_measures_every_split(tiny_run):
    run = tiny_run()
    train(run, 10)
    tables = run_arm(run, 10, "rl", 4)
    accuracy = tables["measurements"].query("metric == 'accuracy'")
    splits = run.splits
    assert set(accuracy["split"]) == {*splits.names, *(probe.name for probe in splits.probes)}
    assert set(accuracy["step"]) == {2}
    played, task = tables["rollouts"], get_task(run.config.task.name)
    assert set(played["from_step"]) == {4}
    for row in played.itertuples():
        assert task.verify(task.problem(row.problem.split(), dict.fromkeys("JQK", 10)), row.answer).reward == row.reward
    assert (run.arm_weights(10, "rl", 4) / MARK).exists()


def test_other_parameters_in_the_same_folder_are_trained_anew(tiny_run):
    one, other = tiny_run(), tiny_run({"sft.learning_rate": 5e-3})
    assert one.folder == other.folder
    train(one, 10)
    train(other, 10)
    assert not same_weights(one.sft_weights(10, 4), other.sft_weights(10, 4))


def test_rejection_sampling_without_a_right_answer_leaves_the_checkpoint_as_it_is(tiny_run):
    run = tiny_run(
        {"rl.starts": [0], "rl.steps": 2, "rl.samples": 2, "rl.prompts": 2, "task.max_new_tokens": 3}
    )  # too short to be right
    tables = run_arm(run, 10, "rejection_sampling", 0)
    assert same_weights(model_folder("tiny"), run.arm_weights(10, "rejection_sampling", 0))
    assert "loss" not in set(tables["measurements"]["metric"])


def test_tables_come_back_from_the_parts(tiny_run):
    run = tiny_run()
    ensure(run, "sft")
    wanted = run.table("measurements", "sft")
    for name in ("measurements.csv", "hands.parquet"):
        (run.folder / name).unlink()
    again = tiny_run()
    ensure(again, "sft")
    pd.testing.assert_frame_equal(again.table("measurements", "sft"), wanted)


def test_work_in_bfloat16_trains_float32_weights_to_nearly_the_same(tiny_run, tmp_path):
    runs = [tiny_run({"machine.precision": p, "out": str(tmp_path / p)}) for p in ("float32", "bfloat16")]
    losses = [train(run, 10)["measurements"].query("metric == 'loss'")["value"].to_numpy() for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and (losses[1] != losses[0]).any()
    exact, rounded = (load_weights(run.sft_weights(10, 4)) for run in runs)
    assert all(t.dtype == torch.float32 for t in rounded.values())
    base = load_weights(model_folder("tiny"))
    matrices = [name for name, t in base.items() if t.ndim == 2]  # the keys' biases have no gradient but rounding
    far = [((exact[n] - rounded[n]).norm() / (exact[n] - base[n]).norm()).item() for n in matrices]
    assert max(far) < 0.1, "nearly all of each update is the same"
    tables = run_arm(runs[1], 10, "rl", 4)
    model, _ = load_model(runs[1].sft_weights(10, 4), precision="bfloat16")
    assert model.dtype == torch.bfloat16 and len(tables["rollouts"])


def test_the_head_reads_the_tokens_of_answers_alone(tiny_run, monkeypatch):
    trainer, read = sft_trainer(tiny_run(), 10), []
    batch = next(iter(trainer.get_train_dataloader()))
    scored = trl.trainer.utils._ChunkedLogProbFunction

    class Watched:
        @staticmethod
        def apply(hidden, *others):
            read.append(len(hidden))
            return scored.apply(hidden, *others)

    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", Watched)
    trainer.compute_loss(trainer.model, dict(batch))
    answers = int((batch["labels"] != -100).sum())
    assert read == [answers] and 0 < answers < batch["input_ids"].numel() / 1.2
