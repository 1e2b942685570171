"""Mitigations and the baselines that train nothing, against brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from oodlib.config import load_config
from oodlib.models.loading import MARK, is_adapter, load_model, load_weights, mix
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.run import Run
from oodlib.tasks import Verdict, get_task
from oodlib.tasks.general_points import OTHER_RULES, RULES
from oodlib.training.baselines.format_reward import by_format
from oodlib.training.baselines.random_reward import shuffled
from oodlib.training.mitigations.iw_sft import weigh as iw_weigh
from oodlib.training.mitigations.kl import kl
from oodlib.training.mitigations.kl_other_rules import answers
from oodlib.training.mitigations.psft import Clip
from oodlib.training.mitigations.rpsft import LeadingBlocks
from oodlib.training.mitigations.shrink_intruders import shrunk
from oodlib.training.setup import Setup
from oodlib.training.sft import PLAIN, measure, sft_trainer, train
from oodlib.training.trainer import averaged_steps, demonstrations, kept_steps

TASK = get_task("general_points")


def with_mitigation(make, name, changes=None):
    weight = {"rpsft": 10.0, "rpsft_released": 10.0, "kl": 1.0, "kl_other_rules": 1.0, "asft": 1.0, "l2": 10.0}.get(
        name, 0.0
    )
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
            # so early a checkpoint is averaged with none, and has no new directions
            assert same == (name in ("none", "averaging", "shrink_intruders"))
    if name in ("none", "lora"):  # whole weights, and an adapter
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


def gradients(run, micro_batch=None):
    """The gradient of each tensor in the first two updates of SFT, and its loss."""
    trainer, found = sft_trainer(run if micro_batch is None else run_with(run, micro_batch), 10), []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            found.append({name: weight.grad.clone() for name, weight in model.named_parameters()})

    trainer.add_callback(Keep())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return found, [row["loss"] for row in trainer.state.log_history if "loss" in row], trainer


def run_with(run, micro_batch):
    return Run(run.config.changed({"machine.micro_batch": micro_batch}), run.folder)


@pytest.mark.parametrize("name", ["kl", "asft", "l2", "iw_sft", "psft"])
def test_a_mitigation_s_gradient_does_not_depend_on_how_the_batch_is_cut(tiny_run, name):
    run = with_mitigation(tiny_run, name, {"sft.warmup_steps": 0})
    (whole, losses, _), (parts, again, _) = gradients(run), gradients(run, 2)
    np.testing.assert_allclose(losses[:3], again[:3], rtol=5e-3)  # later ones part by rounding
    for one, other in zip(whole[:2], parts[:2], strict=True):
        for tensor in one:
            torch.testing.assert_close(one[tensor], other[tensor], rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("name", ["dft", "iw_sft", "psft"])
def test_weighed_losses_are_those_of_their_formulas(tiny_run, name):
    """The first update's gradient, at the base itself: every weight is 1 but DFT's, the token's probability."""
    run = with_mitigation(tiny_run, name, {"sft.warmup_steps": 0, "sft.steps": 4})
    found, _, _ = gradients(run)
    model, _ = load_model(model_folder("tiny"), to_train=True)
    trainer = sft_trainer(with_mitigation(tiny_run, name), 10)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"][:, 1:]
    log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    log_p = log_p.gather(2, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    weights = log_p.exp().detach() if name == "dft" else 1.0
    (-(weights * log_p).sum() / len(log_p)).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    scale = min(1.0, trainer.args.max_grad_norm / float(norm))
    for tensor, weight in model.named_parameters():
        torch.testing.assert_close(found[0][tensor], scale * weight.grad, rtol=1e-2, atol=1e-5)


def test_importance_weights_are_capped_means_of_an_answer(monkeypatch):
    model, _ = load_model(model_folder("tiny"))
    inputs = {"labels": torch.tensor([[-100, 5, 6, 7], [-100, -100, 8, 9]])}
    base = torch.tensor([[-1.0, -2.0, -3.0], [0.0, -4.0, -4.0]])
    monkeypatch.setattr("oodlib.training.mitigations.iw_sft.answer_log_probs", lambda *_: base)
    weights = iw_weigh(model, None)(inputs, base + torch.tensor([[0.3, 0.6, 0.9], [0.0, 3.0, 4.0]]), 0)
    np.testing.assert_allclose(weights[0], np.exp(0.6), rtol=1e-5)
    np.testing.assert_allclose(weights[1], 16.0, rtol=1e-5)


def test_the_clip_leaves_tokens_alone_that_have_become_likely(monkeypatch):
    model, _ = load_model(model_folder("tiny"))
    clip, older = Clip(model), torch.tensor([[-1.0, -1.0, -1.0]])
    monkeypatch.setattr("oodlib.training.mitigations.psft.answer_log_probs", lambda *_: older)
    ratios = torch.tensor([[0.5, 1.27, 1.29]])
    np.testing.assert_allclose(clip({}, older + ratios.log(), 0), [[0.5, 1.27, 0]], rtol=1e-5)


def test_the_older_model_is_renewed_by_updates_in_however_many_parts_a_batch_is_read():
    model, _ = load_model(model_folder("tiny"))
    clip, weight = Clip(model), next(model.parameters())
    start, ones = weight.detach().clone(), torch.ones(1, 3, dtype=torch.long)
    batch = {"input_ids": ones, "attention_mask": ones, "labels": ones}
    for step in range(17):
        for _ in range(3):
            clip(batch, torch.zeros(1, 2), step)
        older = next(clip.older.parameters())
        torch.testing.assert_close(older, start + 0.5 * (step // 8 * 8))
        with torch.no_grad():
            weight += 0.5


def test_replay_puts_the_wanted_share_of_the_base_s_dialogues_among_the_demonstrations(tiny_run):
    config = with_mitigation(tiny_run, "replay", {"sft.mitigation_share": 0.2}).config
    plain = demonstrations(TASK, config, 10, 2000)
    mixed = MITIGATIONS.get("replay").data(plain, TASK, config, 10)
    replayed = [a != b for a, b in zip(plain["prompt"], mixed["prompt"], strict=True)]
    assert 0.17 < np.mean(replayed) < 0.23 and len(mixed) == 2000
    faces = [p.startswith("J = 11 Q = 12 K = 13") for p, new in zip(mixed["prompt"], replayed, strict=True) if new]
    assert np.mean(faces) > 0.8, "the believer's pretraining"
    with pytest.raises(ValueError, match="known for tiny, reader, navigator alone"):
        MITIGATIONS.get("replay").data(plain, TASK, config.changed({"task.prompt_style": "chat"}), 10)


def test_prompt_diversity_gives_a_share_of_the_demonstrations_under_rules_of_no_split(tiny_run):
    config = with_mitigation(tiny_run, "prompt_diversity", {"sft.mitigation_share": 0.5}).config
    plain = demonstrations(TASK, config, 10, 1000)
    mixed = MITIGATIONS.get("prompt_diversity").data(plain, TASK, config, 10)
    rules = [prompt.split(" ; ")[0] for prompt in mixed["prompt"]]
    assert 0.45 < np.mean([rule != "J = 10 Q = 10 K = 10" for rule in rules]) < 0.55
    assert len(set(rules)) == 1 + len(OTHER_RULES) and not set(OTHER_RULES) & {
        tuple(r.values()) for r in RULES.values()
    }
    for problem in TASK.other_rules(np.random.default_rng(0), 50):
        assert TASK.verify(problem, TASK.answer(problem, "compact", np.random.default_rng(0))).outcome == "correct"
        assert max(problem.numbers) <= 10 and set(problem.cards) & set("JQK")
    with pytest.raises(ValueError, match="rank does not"):
        MITIGATIONS.get("prompt_diversity").data(plain, get_task("rank"), config, 10)


def test_kl_on_other_rules_leaves_the_first_token_of_an_answer_free(tiny_run):
    class Bigrams(nn.Module):
        def __init__(self, words):
            super().__init__()
            self.next = nn.Embedding(words, words)

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=self.next(input_ids))

    config = with_mitigation(tiny_run, "kl_other_rules").config
    pairs = answers(config)
    ((last,), second) = {prompt[-1] for prompt, _ in pairs}, pairs[0][1][0]
    assert all(last not in answer for _, answer in pairs)
    for changed, held in ((last, False), (second, True)):
        model = Bigrams(1 + max(max(prompt + answer) for prompt, answer in pairs))
        divergence = MITIGATIONS.get("kl_other_rules").penalty(model, config)
        with torch.no_grad():
            model.next.weight[changed, 0] += 3
        assert (divergence({"input_ids": torch.zeros(4, 1)}) > 0).item() == held


def test_the_spectral_filter_leaves_a_change_of_low_rank(tiny_run):
    run = with_mitigation(tiny_run, "spectral_filter", {"sft.mitigation_share": 1 / 64})
    train(run, 10)
    plain = Run(run.config.changed(PLAIN), run.folder, run.store)
    base, free, end = (load_weights(f) for f in (model_folder("tiny"), *(r.sft_weights(10, 4) for r in (plain, run))))
    for name in base:
        change, kept = ((w[name] - base[name]).double() for w in (free, end))
        if name not in matrices(base):
            assert torch.equal(kept, change)
            continue
        u, s, v = np.linalg.svd(change.numpy())
        k = max(1, round(min(change.shape) / 64))
        np.testing.assert_allclose(kept, (u[:, :k] * s[:k]) @ v[:k], atol=1e-6)


def test_intruders_are_shrunk_and_nothing_else_is():
    rng = np.random.default_rng(0)
    u, v = (torch.tensor(np.linalg.qr(rng.normal(size=(20, 20)))[0]) for _ in range(2))
    values = torch.tensor([9.0, 7.0, 5.0, *(0.5 - 0.02 * torch.arange(17))])
    before = (u * values) @ v.T
    even = u[:, 3:19].sum(1) / 4  # matches each of 16 old directions by a cosine of 0.25
    intruder = 8.0 * torch.outer(even, v[:, 3:19].sum(1) / 4)
    after = before + intruder
    left, s, right = torch.linalg.svd(after)
    match = (u.T @ left[:, :4]).abs().amax(0)
    assert ((match < 0.5) == torch.tensor([False, True, False, False])).all()
    wanted = after - 0.25 * s[1] * torch.outer(left[:, 1], right[1])
    np.testing.assert_allclose(shrunk(before, after, 4 / 20, 0.75), wanted, atol=1e-9)
    assert (shrunk(before, after, 4 / 20, 0.75) - after).norm() > 1.9
    np.testing.assert_allclose(shrunk(before, before, 4 / 20, 0.75), before, atol=1e-9)


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


def test_a_moving_average_is_the_recursion_and_sft_keeps_what_it_needs(tiny_run, monkeypatch):
    monkeypatch.setattr("oodlib.training.mitigations.ema.EVERY", 1)
    run = with_mitigation(tiny_run, "ema", {"sft.mitigation_share": 0.3, "rl.baselines": [], "sft.warmup_steps": 0})
    train(run, 10)
    plain = Run(run.config.changed(PLAIN), run.folder)
    expected = load_weights(model_folder("tiny"))
    for step in (1, 2, 3, 4):
        now = load_weights(plain.sft_weights(10, step))
        expected = {n: 0.7 * expected[n].double() + 0.3 * now[n].double() for n in expected}
    found = load_weights(run.sft_weights(10, 4))
    assert all(torch.allclose(found[n].double(), expected[n], atol=1e-6) for n in expected)
    assert not (plain.sft_weights(10, 3) / "optimizer.pt").exists()


@pytest.mark.parametrize("name", ["averaging", "ema"])
def test_sft_keeps_what_a_mitigation_averages_though_no_baseline_does(name):
    config = load_config("tiny", {"rl.baselines": [], "sft.mitigation": name})
    wanted = {"averaging": {376, 384, 392, 400}, "ema": set(range(8, 401, 8))}[name]
    assert wanted <= set(kept_steps(config))
    assert kept_steps(config.changed(PLAIN)) == [t for t in config.sft.checkpoints if t]
    other = config.changed({"sft.mitigation": "interpolation"})
    assert wanted <= set(kept_steps(other, shared=True)), "whoever trains the shared SFT first"


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
