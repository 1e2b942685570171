"""Baselines that sample: what each learns from, by what loss, and which settings it may ignore."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, set_seed

from oodlib.models.loading import load_model, load_weights
from oodlib.models.sources import model_folder
from oodlib.registry import BASELINES
from oodlib.tasks import Verdict, get_task
from oodlib.training.baselines.negatives import wrong_alone
from oodlib.training.baselines.rejection_sampling_fresh import right_alone
from oodlib.training.baselines.sft_nearest import nearest_answers
from oodlib.training.ppo import PPOTrainer
from oodlib.training.record import ROLLOUTS
from oodlib.training.rl import make_trainer
from oodlib.training.setup import Setup
from oodlib.training.trainer import fit

TASK = get_task("general_points")
SMALL = {
    "rl.prompts": 6, "rl.samples": 6, "rl.updates_per_batch": 1, "rl.warmup_steps": 0, "task.max_new_tokens": 8,
    "rl.learning_rate": 1e-3, "rl.temperature": 3.0,
}  # fmt: skip


class Coin:
    """The checker's word is a fair coin's, the same for the same answer: right or wrong, whatever the model knows."""

    hopeless = False

    def __getattr__(self, name):
        return getattr(TASK, name)

    def verify(self, problem, text):
        right = sum(map(ord, text)) % 2 and not self.hopeless
        return Verdict("correct" if right else "wrong_value", 5.0 if right else -1.0, "")


class Keep(TrainerCallback):
    """Keeps the gradient of the first update."""

    gradient = None

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradient = self.gradient or {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture
def make(tiny_run, tmp_path):
    """The trainer of an arm on a small run, and its folder."""

    def trainer(arm, changes=None, task=None, folder="arm"):
        set_seed(10)
        config = tiny_run({**SMALL, **(changes or {})}).config
        setup = Setup(*load_model(model_folder("tiny"), to_train=True), task or Coin(), config, 10, tmp_path / folder)
        return (make_trainer if arm == "rl" else BASELINES.get(arm).make_trainer)(setup), tmp_path / folder

    return trainer


def train(trainer, folder, steps=2):
    log = fit(trainer, folder, [steps])
    return log, pd.read_parquet(folder / f"checkpoint-{steps}" / ROLLOUTS)


def batches(trainer, monkeypatch):
    """What the trainer's loss is given, update by update."""
    kept, loss = [], trainer.compute_loss

    def keep(model, inputs, *rest, **others):
        kept.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
        return loss(model, inputs, *rest, **others)

    monkeypatch.setattr(trainer, "compute_loss", keep)
    return kept


@pytest.mark.parametrize("arm", ["rl", "negatives", "reinforce", "rejection_sampling_fresh"])
def test_the_rollouts_hold_what_was_learnt_from(make, monkeypatch, arm):
    trainer, folder = make(arm, {"rl.updates_per_batch": 2})
    given = batches(trainer, monkeypatch)
    _, played = train(trainer, folder)
    learnt = torch.cat([inputs["advantages"] for inputs in given]).tolist()
    np.testing.assert_allclose(sorted(learnt), sorted(played["advantage"]), atol=1e-5)
    assert ("old_per_token_logps" in given[0]) == (arm != "rejection_sampling_fresh")  # else the ratio is 1
    assert any(learnt) and played["reward"].isin([5.0, -1.0]).all()


def test_negatives_push_wrong_answers_down_and_none_up(make):
    plain, negative = (train(*make(arm, folder=arm))[1] for arm in ("rl", "negatives"))
    first = negative["update"] == 0
    assert (plain["answer"][first] == negative["answer"][first]).all()
    wrong = negative["outcome"] != "correct"
    assert (negative["advantage"] <= 0).all() and (negative["advantage"][~wrong] == 0).all()
    both = first & wrong & (plain["advantage"] < 0)
    assert both.any() and (negative["advantage"][both] == plain["advantage"][both]).all()
    log, _ = train(*make("negatives", {"rl.epochs": 2}, folder="again"))
    assert log[0]["loss"] > 0 and log[1]["loss"] < log[0]["loss"]  # ratio x |advantage| of the same wrong answers
    found = wrong_alone(np.array([2.0, 1.0, -1.0, -2.0]), np.array([True, False, False, True]), np.ones(4))
    assert found.tolist() == [0, 0, -1, 0]


def test_reinforce_learns_right_answers_with_weight_1_and_no_others(make):
    plain, (_, played) = train(*make("rl", folder="rl"))[1], train(*make("reinforce"))
    first = played["update"] == 0
    assert (plain["answer"][first] == played["answer"][first]).all()
    assert (played["advantage"] == (played["outcome"] == "correct")).all() and played["advantage"].nunique() == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_fresh_rejection_sampling_s_gradient_is_that_of_cross_entropy_on_right_answers(make, monkeypatch, attempts):
    changes = {"rl.attempts": attempts, "rl.max_grad_norm": 1e9, "machine.micro_batch": 9}
    trainer, folder = make("rejection_sampling_fresh", changes)
    keep, given = Keep(), batches(trainer, monkeypatch)
    trainer.add_callback(keep)
    start = load_model(model_folder("tiny"))[0]
    _, played = train(trainer, folder)
    tokenizer, loss, learnt = trainer.processing_class, 0.0, 0
    for inputs in given[:4]:  # the parts of the first update
        for i in range(len(inputs["prompt_ids"])):
            prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i] > 0]
            ids = inputs["completion_ids"][i][inputs["completion_mask"][i] > 0]
            mine = inputs["tool_mask"][i][: len(ids)] > 0 if "tool_mask" in inputs else torch.ones(len(ids), dtype=bool)
            answer = tokenizer.decode(ids[mine], skip_special_tokens=True)
            if Coin().verify(None, answer).outcome != "correct":
                continue
            whole = torch.cat([prompt, ids])
            labels = whole.masked_fill(~torch.cat([torch.zeros(len(prompt), dtype=bool), mine]), -100)
            loss = loss + cross_entropy(start(whole[None]).logits[0, :-1], labels[1:], reduction="sum")
            learnt += int(mine.sum())
    (loss / learnt).backward()
    assert (played["outcome"] == "correct").mean() > 0.1
    for name, p in start.named_parameters():
        torch.testing.assert_close(keep.gradient[name], p.grad, rtol=1e-3, atol=1e-5)
    right = np.array([True, False, True])
    assert right_alone(np.zeros(3), right, np.array([2, 4, 3])).tolist() == [9 / 5, 0, 9 / 5]


def test_fresh_rejection_sampling_changes_nothing_where_no_answer_is_right(make):
    task = Coin()

    class Despair(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            task.hopeless = state.global_step >= 2

    trainer, folder = make("rejection_sampling_fresh", {"rl.steps": 4}, task)
    trainer.add_callback(Despair())
    fit(trainer, folder, [1, 2, 4])
    played = pd.read_parquet(folder / "checkpoint-4" / ROLLOUTS)
    assert (played["outcome"] == "correct").groupby(played["update"]).any().tolist() == [True, True, False, False]
    one, two, four = (load_weights(folder / f"checkpoint-{t}") for t in (1, 2, 4))
    assert all(torch.equal(two[n], four[n]) for n in two) and not all(torch.equal(one[n], two[n]) for n in two)


def test_fresh_samples_come_from_the_model_as_it_is_and_on_rl_s_problems(make):
    arms = ("rejection_sampling_fresh", "rl")
    fresh, plain = (train(*make(arm, {"rl.temperature": 2.0}, folder=arm))[1] for arm in arms)
    assert fresh["problem"].tolist() == plain["problem"].tolist() and fresh["group"].tolist() == plain["group"].tolist()
    first = fresh["update"] == 0
    assert (fresh["answer"] == plain["answer"])[first].all() and (fresh["answer"] != plain["answer"])[~first].any()


def test_the_nearest_right_answers_are_drawn_as_the_start_finds_them_probable(tiny_run, tmp_path):
    config = tiny_run({**SMALL, "rl.prompts": 2, "rl.samples": 400}).config
    model, tokenizer = load_model(model_folder("tiny"))
    setup = Setup(model, tokenizer, TASK, config, 10, tmp_path)
    drawn = nearest_answers(setup).to_pandas()
    assert len(drawn) == setup.samples and config.rl.steps * 2 * 400 == setup.samples
    for problem in setup.problems()[:4]:
        prompt, log_p = TASK.prompt(problem, "compact"), {}
        for answer in TASK.answers(problem, "compact"):
            assert TASK.verify(problem, answer).outcome == "correct"
            asked, given = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            with torch.inference_mode():
                logits = model(torch.tensor([asked + given])).logits[0, len(asked) - 1 : -1].double()
            log_p[answer] = float(logits.log_softmax(-1)[range(len(given)), given].sum())
        shares = pd.Series(log_p).sub(max(log_p.values())).pipe(np.exp)
        shares /= shares.sum()
        found = drawn.loc[drawn["prompt"] == prompt, "completion"].value_counts(normalize=True)
        assert set(found.index) <= set(shares.index)
        far = (found.reindex(shares.index, fill_value=0) - shares).abs()
        assert (far < 4.5 * np.sqrt(shares * (1 - shares) / 400) + 1e-9).all()


def test_an_entropy_bonus_raises_entropy(make):
    """All answers are wrong, so that GRPO alone changes nothing; the second update sees the first one's answers."""
    task = Coin()
    task.hopeless = True
    without, bonus = (train(*make(arm, {"rl.epochs": 2}, task, arm))[0] for arm in ("rl", "entropy_bonus"))
    assert without[0]["entropy"] == pytest.approx(without[1]["entropy"]) == pytest.approx(bonus[0]["entropy"])
    assert bonus[1]["entropy"] > bonus[0]["entropy"] + 1e-3


def test_variants_are_rl_with_one_thing_changed(make):
    for algorithm in ("grpo", "rloo", "ppo"):
        trainer, _ = make("ppo", {"rl.algorithm": algorithm, "rl.value_coefficient": 0.5})
        assert isinstance(trainer, PPOTrainer) and trainer.setup.config.rl.value_coefficient == 0.02
    slow, plain = (make(arm, {"rl.options": {"loss_type": "dr_grpo"}})[0].args for arm in ("slow_rl", "rl"))
    assert slow.learning_rate == pytest.approx(0.4 * plain.learning_rate) and slow.loss_type == plain.loss_type
    assert make("entropy_bonus", {"rl.options": {"loss_type": "dr_grpo"}})[0].args.loss_type == "dr_grpo"
    assert make("entropy_bonus", {"rl.algorithm": "ppo"})[0].args.entropy_coef == 0.1


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        (
            "rejection_sampling_fresh",
            {"rl.algorithm": "rloo", "rl.clip": 0.01, "rl.kl": 0.5, "rl.options": {"normalize_advantages": True}},
        ),
        ("reinforce", {"rl.algorithm": "rloo", "rl.options": {"normalize_advantages": True}}),
        ("negatives", {"rl.gae_lambda": 0.1, "rl.value_coefficient": 9.0}),
        ("ppo", {"rl.kl": 0.5, "rl.value_coefficient": 9.0}),
    ],
)
def test_what_a_baseline_ignores_changes_none_of_its_numbers(make, arm, changes):
    assert {name.removeprefix("rl.") for name in changes} <= set(BASELINES.get(arm).ignores)
    (log, played), (other, again) = (train(*make(arm, c, folder=f)) for c, f in (({}, "a"), (changes, "b")))
    pd.testing.assert_frame_equal(played, again)
    assert [row["loss"] for row in log] == [row["loss"] for row in other]


def test_a_configuration_that_a_baseline_does_not_fit_is_refused(tiny_run):
    with pytest.raises(ValueError, match=r"model\.lora"):
        BASELINES.get("ppo").check(tiny_run({"model.lora": {"r": 2}}).config)
    with pytest.raises(ValueError, match="rank does not"):
        BASELINES.get("sft_nearest").check(tiny_run({"task.name": "rank"}).config)
    with pytest.raises(ValueError, match="scale_rewards"):
        BASELINES.get("negatives").check(tiny_run({"rl.options": {"scale_rewards": "none"}}).config)


def test_every_baseline_says_what_it_learns_from_and_has_a_colour_of_its_own():
    found = {name: BASELINES.get(name) for name in BASELINES.names()}
    groups = {kind: {n for n, b in found.items() if b.information == kind} for kind in ("equal", "more", "none")}
    assert groups == {
        "equal": {"rejection_sampling", "rejection_sampling_fresh"},
        "more": {"sft_continued", "sft_nearest"},
        "none": {"averaging", "interpolation_base"},
    }
    assert {n for n, b in found.items() if not b.counts} == {
        "negatives",
        "entropy_bonus",
        "reinforce",
        "ppo",
        "slow_rl",
        "sft_nearest",
    }
    assert all(a.colour != b.colour and a.label != b.label for a, b in combinations(found.values(), 2))
