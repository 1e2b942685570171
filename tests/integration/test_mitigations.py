"""Mitigations and the baselines that train nothing, against brute force."""

import numpy as np
import pytest
import torch

from oodlib.models.loading import MARK, is_adapter, load_model, load_weights, mix
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.tasks import Verdict, get_task
from oodlib.training.baselines.format_reward import by_format
from oodlib.training.baselines.random_reward import shuffled
from oodlib.training.mitigations.kl import kl
from oodlib.training.mitigations.rpsft import LeadingBlocks
from oodlib.training.setup import Setup
from oodlib.training.sft import PLAIN, measure, train
from oodlib.training.trainer import averaged_steps

TASK = get_task("general_points")


def with_mitigation(make, name, changes=None):
    weight = {"rpsft": 10.0, "rpsft_released": 10.0, "kl": 1.0}.get(name, 0.0)
    return make({**PLAIN, "sft.mitigation": name, "sft.mitigation_weight": weight, **(changes or {})})


@pytest.mark.parametrize("name", ["none", *MITIGATIONS.names()])
def test_every_mitigation_leaves_checkpoints_that_differ_from_plain_sft(tiny_run, name):
    run, plain = with_mitigation(tiny_run, name), tiny_run({**PLAIN})
    train(run, 10)
    train(plain, 10)
    for step in (2, 4):  # (the warm-up's first step is one of size 0, so at step 2 a penalty had nothing to hold yet)
        folder = run.sft_weights(10, step)
        assert (folder / MARK).exists() and is_adapter(folder) == (name == "lora")
        mine, theirs = load_weights(folder), load_weights(plain.sft_weights(10, step))
        assert set(mine) == set(theirs)
        same = all(torch.equal(mine[n], theirs[n]) for n in mine)
        if name == "none" or (step == 4 and name != "early_stopping"):  # which may keep the last checkpoint
            assert same == (name in ("none", "averaging"))  # so early a checkpoint is averaged with none
    rows = measure(run, 10, 4)["measurements"]
    assert set(TASK.splits.names) < set(rows["split"]) and rows["value"].notna().all()
    before = load_weights(run.sft_weights(10, 4))
    train(run, 10)  # again: nothing left to do
    after = load_weights(run.sft_weights(10, 4))
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_rpsft_penalises_the_leading_block_and_nothing_else():
    model, _ = load_model(model_folder("tiny"))
    penalty = LeadingBlocks(model, 0.25, 2.0)
    assert penalty().item() == pytest.approx(0, abs=1e-9)
    name = next(iter(matrices(dict(model.named_parameters()))))
    matrix = dict(model.named_parameters())[name]
    U, _, Vt = np.linalg.svd(matrix.detach().double().numpy(), full_matrices=False)
    k = round(0.25 * min(matrix.shape))
    change = np.random.default_rng(0).normal(size=matrix.shape) * 0.01
    expected = 2.0 * np.sum((U[:, :k].T @ change @ Vt[:k].T) ** 2)
    with torch.no_grad():
        matrix += torch.tensor(change, dtype=matrix.dtype)
    assert penalty().item() == pytest.approx(expected, rel=1e-4)
    outside = U[:, k:] @ U[:, k:].T @ change  # leaves the leading left directions alone
    with torch.no_grad():
        matrix += torch.tensor(outside - change, dtype=matrix.dtype)
    assert penalty().item() < 1e-4 * expected


def test_rpsft_holds_the_leading_block_during_training(tiny_run):
    from oodlib.spectral.svd import spectrum

    def moved(run):
        base, end = load_weights(model_folder("tiny")), load_weights(run.sft_weights(10, 4))
        total = 0.0
        for name in matrices(base):
            s = spectrum(base[name], name)
            k = round(0.25 * len(s.values))
            change = (end[name] - base[name]).double()
            total += float((s.left[:, :k].double().T @ change @ s.right[:, :k].double()).square().sum())
        return total

    free, held = tiny_run({**PLAIN}), with_mitigation(tiny_run, "rpsft", {"sft.mitigation_weight": 100.0})
    train(free, 10)
    train(held, 10)
    assert moved(held) < 0.7 * moved(free)


def test_kl_is_scipy_s():
    from scipy.special import rel_entr, softmax

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    expected = rel_entr(softmax(a, 1), softmax(b, 1)).sum(1).mean()
    assert kl(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, rel=1e-5)


def test_mix_is_the_weighted_sum(tiny_run):
    run = tiny_run({**PLAIN})
    train(run, 10)
    a, b = (load_weights(run.sft_weights(10, t)) for t in (0, 4))
    mixed = mix([(run.sft_weights(10, 0), 0.25), (run.sft_weights(10, 4), 0.75)])
    for name in a:
        torch.testing.assert_close(mixed[name], 0.25 * a[name] + 0.75 * b[name])


def test_lora_changes_projections_by_a_low_rank_alone(tiny_run):
    run = with_mitigation(tiny_run, "lora", {"sft.mitigation_share": 1 / 64})
    train(run, 10)
    base, end = load_weights(model_folder("tiny")), load_weights(run.sft_weights(10, 4))
    for name in base:
        change = (end[name] - base[name]).double()
        if name in matrices(base):
            values = torch.linalg.svdvals(change)
            assert values[0] > 0 and values[2] < 1e-3 * values[0]
        else:
            assert torch.equal(end[name], base[name])


def test_baselines_that_edit_weights_are_the_mixes_that_they_say(tiny_run, tmp_path):
    run = tiny_run({**PLAIN})
    train(run, 10)

    def sft(t):
        return run.sft_weights(10, t)

    setup = Setup(*load_model(sft(4)), TASK, run.config, 10, tmp_path, 4, sft)
    wanted = {
        "averaging": [(sft(4), 1.0)],
        "interpolation_base": [(sft(0), 0.5), (sft(4), 0.5)],
    }
    for arm, parts in wanted.items():
        found, expected = BASELINES.get(arm).make_weights(setup), mix(parts)
        assert all(torch.allclose(found[n], expected[n]) for n in expected)


def test_averaging_takes_the_last_24_steps_and_sft_keeps_them_for_it(tiny_run, monkeypatch):
    assert averaged_steps(100) == [76, 84, 92, 100] and averaged_steps(8) == [8]
    monkeypatch.setattr("oodlib.training.trainer.averaged_steps", lambda step: [step - 1, step])
    for arms, kept in (([], [2, 4]), (["averaging"], [1, 2, 3, 4])):
        run = tiny_run({**PLAIN, "rl.baselines": arms, "sft.learning_rate": 1e-3 * (1 + len(arms))})
        train(run, 10)
        assert [step for step in (1, 2, 3, 4) if (run.sft_weights(10, step) / MARK).exists()] == kept


def test_what_sft_did_not_keep_is_said(tiny_run, tmp_path):
    setup = Setup(None, None, TASK, tiny_run().config, 10, tmp_path, 100, lambda step: tmp_path / str(step))
    with pytest.raises(ValueError, match=r"76, 84, 92, 100.*`out`"):
        BASELINES.get("averaging").make_weights(setup)


VERDICTS = [[Verdict("malformed", -3.0, ""), Verdict("correct", 5.0, "")], [Verdict("wrong_value", -1.0, "")]]


def test_random_rewards_are_the_checker_s_own_in_another_order():
    found = [shuffled(VERDICTS, np.random.default_rng(seed)) for seed in range(40)]
    for rewards in found:
        assert [len(r) for r in rewards] == [2, 1] and sorted(r for attempts in rewards for r in attempts) == [
            -3,
            -1,
            5,
        ]
    means = np.mean([[r[0][0], r[0][1], r[1][0]] for r in found], 0)
    assert np.ptp(means) < 3, "no attempt is favoured"
    assert shuffled(VERDICTS, np.random.default_rng(1)) == found[1]


def test_format_rewards_do_not_know_what_is_right():
    assert by_format(VERDICTS, None) == [[-3.0, 5.0], [5.0]]
