"""PPO against closed forms: advantages by hand, the clipped objective's gradient, a bandit with a known optimum."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import set_seed

from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.tasks import Verdict, get_task
from oodlib.training.ppo import PPOTrainer, clipped_loss, gae
from oodlib.training.record import ROLLOUTS, Record, checker_rewards
from oodlib.training.rl import make_trainer
from oodlib.training.setup import Setup
from oodlib.training.trainer import fit

TASK = get_task("general_points")


def test_gae_by_hand():
    # deltas: 1 + .9*.4 - .5 = .86, then 2 + .9*-.2 - .4 = 1.42, then 3 - -.2 = 3.2
    found = gae([1, 2, 3], [0.5, 0.4, -0.2], 0.9, 0.95)
    c = 0.9 * 0.95
    np.testing.assert_allclose(found, [0.86 + c * (1.42 + c * 3.2), 1.42 + c * 3.2, 3.2])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_gae_has_its_two_limits(n):
    rng = np.random.default_rng(n)
    rewards, values = rng.normal(size=n).tolist(), rng.normal(size=n).tolist()
    after = [*values[1:], 0.0]
    np.testing.assert_allclose(
        gae(rewards, values, 0.9, 0.0), [r + 0.9 * b - v for r, b, v in zip(rewards, after, values, strict=True)]
    )
    returns = [sum(0.9 ** (s - t) * rewards[s] for s in range(t, n)) for t in range(n)]
    np.testing.assert_allclose(gae(rewards, values, 0.9, 1.0), np.array(returns) - values)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.0, 2.0, -2.0), (1.05, 2.0, -2.1), (1.3, 2.0, 0.0), (0.7, 2.0, -1.4), (1.3, -2.0, 2.6), (0.7, -2.0, 0.0)],
)
def test_the_clipped_objective_s_gradient(ratio, advantage, slope):
    """d loss / d logp is -ratio A where the unclipped term is the smaller, and 0 where the clip holds."""
    logp = torch.tensor(np.log(ratio), dtype=torch.float64, requires_grad=True)
    loss = clipped_loss(logp, torch.zeros((), dtype=torch.float64), torch.tensor(advantage), 0.1)
    loss.backward()
    assert logp.grad.item() == pytest.approx(slope)
    clipped = min(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    assert loss.item() == pytest.approx(-clipped)


class Bandit:
    """One state, answers of one word; each word's reward is known, so the best policy is as well."""

    best = '{"cards":"'

    def __getattr__(self, name):
        return getattr(TASK, name)

    def verify(self, problem, text):
        word = text.split()[0] if text.split() else ""
        right = word == self.best
        return Verdict("correct" if right else "wrong_value", 5.0 if right else -1.0, "")


def setup_for(run, folder, task=TASK):
    set_seed(10)
    return Setup(*load_model(model_folder("tiny")), task, run.config, 10, folder)


def test_a_bandit_with_a_known_optimum(tiny_run, tmp_path):
    changes = {"rl.learning_rate": 1e-3, "rl.steps": 30, "rl.epochs": 2, "rl.updates_per_batch": 1}
    run = tiny_run({"rl.algorithm": "ppo", "task.max_new_tokens": 1, "rl.prompts": 8, "rl.samples": 8, **changes})
    setup = setup_for(run, tmp_path, Bandit())
    trainer = PPOTrainer(setup, Record(setup, checker_rewards))
    fit(trainer, tmp_path, [30])
    played = pd.read_parquet(tmp_path / "checkpoint-30" / ROLLOUTS)
    right = (played["outcome"] == "correct").groupby(played["update"]).mean()
    assert right.iloc[0] < 0.5 and right.iloc[-5:].mean() > 0.95


def test_the_value_head_learns_what_a_hopeless_game_pays(tiny_run, tmp_path):
    """Every try is wrong and pays -1, two tries: the values before them are -1 - 0.9 and -1."""
    run = tiny_run(
        {
            "rl.algorithm": "ppo",
            "task.max_new_tokens": 2,
            "rl.attempts": 2,
            "rl.learning_rate": 2e-4,
            "rl.steps": 60,
            "rl.gae_lambda": 1.0,
            "rl.entropy_coefficient": 0.0,
        }
    )
    task = Bandit()
    task.best = "no such word"
    setup = setup_for(run, tmp_path, task)
    trainer = PPOTrainer(setup, Record(setup, checker_rewards))
    fit(trainer, tmp_path, [60])
    found = np.array([row["value"][row["states"] > 0].tolist() for row in trainer.play(58)])
    np.testing.assert_allclose(found.mean(0), [-1.9, -1.0], atol=0.3)  # other processors learn other digits


def test_advantages_go_to_the_tokens_of_their_attempt(tiny_run, tmp_path):
    run = tiny_run({"rl.algorithm": "ppo", "rl.attempts": 2})
    setup = setup_for(run, tmp_path)
    trainer = PPOTrainer(setup, Record(setup, checker_rewards))
    for row in trainer.play(0):
        own = row["own"] > 0
        assert (row["advantage"][~own] == 0).all() and (row["logp"][own] < 0).all()
        assert (row["try"][own] >= 0).all() and row["states"].sum() == row["try"].max() + 1
        for t in range(int(row["try"].max()) + 1):
            mine = row["advantage"][row["try"] == t]
            assert len(mine) and (mine == mine[0]).all()
            state = int((row["try"] == t).nonzero()[0]) - 1
            assert row["states"][state] == 1


def test_ppo_learns_nothing_from_what_the_checker_said(tiny_run, tmp_path):
    """The messages between attempts, and the prompt, are context: their values do not change the loss."""
    run = tiny_run({"rl.algorithm": "ppo", "rl.attempts": 2, "rl.updates_per_batch": 1})
    setup = setup_for(run, tmp_path)
    trainer = PPOTrainer(setup, Record(setup, checker_rewards))
    trainer.played = trainer.play(0)
    trainer.state.global_step, trainer.setup = 1, replace(setup, config=run.config.changed({"rl.epochs": 2}))

    def loss(column, where, value):
        trainer._step = -1  # each call is an update of its own
        kept = [row[column].clone() for row in trainer.played]
        for row in trainer.played:
            row[column][(row["own"] > 0) == where] = value
        found = trainer.compute_loss(trainer.model, {}).item()
        for row, before in zip(trainer.played, kept, strict=True):
            row[column] = before
        return found

    plain = loss("advantage", False, 0.0)
    for column, value in (("advantage", 50.0), ("logp", -9.0), ("return", 0.0)):
        if column != "return":
            assert loss(column, False, value) == pytest.approx(plain, abs=1e-5)
    assert loss("advantage", True, 50.0) != pytest.approx(plain, abs=1e-2)


def test_grpo_learns_nothing_from_what_the_checker_said(tiny_run, tmp_path, monkeypatch):
    """TRL's loss over episodes of several attempts: old log-probabilities of the checker's tokens do not matter."""
    run = tiny_run({"rl.attempts": 2, "rl.steps": 2})
    setup = setup_for(run, tmp_path)
    trainer = make_trainer(setup)
    kept = {}
    plain = trainer._compute_loss

    def keep(model, inputs):
        kept.update({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}, n=inputs)
        return plain(model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", keep)
    fit(trainer, setup.folder, [2])
    inputs = kept.pop("n")
    mask = kept["tool_mask"]
    assert 0 < mask.float().mean() < 1 and (mask[kept["completion_mask"] == 0] <= 1).all()

    def loss(where):
        old = kept["old_per_token_logps"].clone()
        old[mask == where] -= 0.3
        return plain(trainer.model, {**inputs, **kept, "old_per_token_logps": old}).item()

    untouched = plain(trainer.model, {**inputs, **kept}).item()
    assert loss(0) == pytest.approx(untouched, abs=1e-6)
    assert loss(1) != pytest.approx(untouched, abs=1e-4)


def test_every_algorithm_trains_with_several_tries(tiny_run, tmp_path):
    for algorithm in ("grpo", "ppo"):
        run = tiny_run({"rl.algorithm": algorithm, "rl.attempts": 2})
        setup = setup_for(run, tmp_path / algorithm)
        trainer = make_trainer(setup)
        log = fit(trainer, setup.folder, [2])
        assert {row["step"] for row in log} == {1, 2}
        played = pd.read_parquet(setup.folder / "checkpoint-2" / ROLLOUTS)
        assert set(played["tries"]) <= {1, 2} and len(played) == run.config.rl.prompts * run.config.rl.samples
        assert played.groupby("group").size().eq(run.config.rl.samples).all()
