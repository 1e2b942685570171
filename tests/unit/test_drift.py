"""Drift from the base, against closed forms, brute force and scipy."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy

from oodlib.models.loading import load_model
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.spectral.drift import (
    LEADING,
    answer_certainty,
    answer_divergence,
    first_tokens,
    frechet_distance,
    hidden_states,
    linear_cka,
    moved_along,
    squared_mmd,
    weight_drift,
)
from oodlib.spectral.metrics import MEASURES
from oodlib.tasks import get_task


@pytest.fixture(scope="module")
def pair():
    """The tiny base, and the same with noise on every weight."""
    one, tokenizer = load_model(model_folder("tiny"))
    other, _ = load_model(model_folder("tiny"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    return one, other, tokenizer


PROMPTS = ["J = 10 Q = 10 K = 10 ; cards 2 3 4 6 ; make 24 ; as json :\n", "cards A 2 3 4 ; make 24 ; as json :\n"]
ANSWERS = ["2 * 3 * 4", "1 * 2 * 3 * 4 = 24"]


def tokens(tokenizer, texts):
    return [tokenizer(text)["input_ids"] for text in texts]


def next_words(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double().softmax(-1).numpy()


def test_the_divergence_of_an_answer_is_the_sum_over_its_tokens(pair):
    one, other, tokenizer = pair
    prompts, answers = tokens(tokenizer, PROMPTS), tokens(tokenizer, ANSWERS)
    wanted = [
        sum(
            entropy(next_words(one, p + a)[place], next_words(other, p + a)[place])
            for place in range(len(p) - 1, len(p + a) - 1)
        )
        for p, a in zip(prompts, answers, strict=True)
    ]
    without = [
        whole - entropy(*(next_words(model, p + a)[len(p) - 1] for model in (one, other)))
        for whole, p, a in zip(wanted, prompts, answers, strict=True)
    ]
    np.testing.assert_allclose(answer_divergence(one, other, prompts, answers, after=1), without, rtol=1e-4)
    for size in (1, 2):
        np.testing.assert_allclose(answer_divergence(one, other, prompts, answers, size), wanted, rtol=1e-4)
    assert np.abs(answer_divergence(one, one, prompts, answers)).max() < 1e-6


def test_over_all_answers_of_two_words_it_is_the_divergence_of_answers(pair):
    one, other, tokenizer = pair
    (prompt,), words = tokens(tokenizer, PROMPTS[:1]), range(len(tokenizer))
    first = [next_words(model, prompt)[-1] for model in (one, other)]
    second = [np.stack([next_words(model, [*prompt, w])[-1] for w in words]) for model in (one, other)]
    p, q = (f[:, None] * s for f, s in zip(first, second, strict=True))
    estimate = answer_divergence(one, other, [prompt] * len(words), [[w, 0] for w in words])
    assert first[0] @ estimate == pytest.approx(entropy(p.ravel(), q.ravel()), rel=1e-3)


def test_certainty_is_that_of_the_answers_tokens(pair):
    one, _, tokenizer = pair
    prompts, answers = tokens(tokenizer, PROMPTS), tokens(tokenizer, ANSWERS)
    rows = np.concatenate(
        [next_words(one, p + a)[len(p) - 1 : len(p + a) - 1] for p, a in zip(prompts, answers, strict=True)]
    )
    top = np.sort(rows, axis=1)
    wanted = entropy(rows, axis=1).mean(), (top[:, -1] - top[:, -2]).mean()
    np.testing.assert_allclose(answer_certainty(one, prompts, answers), wanted, rtol=1e-4)


def test_answers_open_as_demonstrations_do(pair):
    tokenizer, task = pair[2], get_task("general_points")
    problems = task.sample(np.random.default_rng(0), "id", 20)
    (opening,) = first_tokens(tokenizer, task, problems, "compact")
    assert tokenizer.decode([opening]).startswith("{")


def test_hidden_states_are_those_at_the_last_token(pair):
    one, _, tokenizer = pair
    prompts = tokens(tokenizer, PROMPTS)
    found = hidden_states(one, prompts)
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():
            states = one(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            torch.testing.assert_close(found[layer, i].float(), state[0, -1], rtol=1e-4, atol=1e-4)


def test_cka_sees_neither_a_turn_nor_a_scale_and_is_the_share_of_common_variance():
    rng = np.random.default_rng(0)
    x, turn = torch.tensor(rng.normal(size=(50, 6))), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3 * x @ torch.tensor(turn) + 1) == pytest.approx(1)
    y = torch.tensor(rng.normal(size=(50, 4)))
    a, b = (np.cov(np.hstack([x, y]).T)[i, j] for i, j in ((slice(6), slice(6)), (slice(6, 10), slice(6, 10))))
    between = np.cov(np.hstack([x, y]).T)[:6, 6:]
    assert linear_cka(x, y) == pytest.approx((between**2).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_mmd_is_the_mean_over_pairs_of_different_inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 3))
    y = x + rng.normal(1, 1, size=(7, 3))
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(7) for j in range(i)]
    width = np.sort(distances)[(len(distances) - 1) // 2]  # torch's median: the lower of the middle two

    def k(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * width**2))

    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i in range(7) for j in range(7) if i != j
    ]
    assert squared_mmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(np.mean(terms))
    assert squared_mmd(torch.tensor(x), torch.tensor(x)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(60, 5), (10, 30)])
def test_the_frechet_distance_is_that_of_the_covariances(n, p):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(n, p)), rng.normal(0.5, 2, size=(n, p))
    a, b = np.cov(x.T), np.cov(y.T)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(wanted**0.5, rel=1e-3)
    assert frechet_distance(torch.tensor(x), torch.tensor(x)) < 1e-6
    assert frechet_distance(torch.tensor(x), torch.tensor(x + 3)) == pytest.approx(3 * p**0.5, abs=1e-6)


def test_the_way_of_the_mean_lies_along_the_components_of_the_base():
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    x = rng.normal(size=(500, 8)) * [9, 5, *[1] * 6] @ axes.T
    found = moved_along(torch.tensor(x), torch.tensor(x + 2 * axes[:, 0] - 3 * axes[:, 1]))
    np.testing.assert_allclose(np.abs(found), [2, 3], rtol=0.1)


def test_drift_of_weights_against_numpy(pair):
    one, _, _ = pair
    before = {name: weight.detach() for name, weight in one.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    after = {}
    for name, weight in before.items():  # a third of the weights stay, a third move too little for bfloat16
        kind = torch.randint(3, weight.shape, generator=generator)
        after[name] = weight + (kind == 1) * weight * 1e-4 + (kind == 2) * weight * 0.2
    found = weight_drift(before, after)
    old = np.concatenate([w.numpy().ravel() for w in before.values()]).astype(float)
    new = np.concatenate([w.numpy().ravel() for w in after.values()]).astype(float)
    assert found["weight_change"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)
    assert found["unchanged"] == pytest.approx((np.abs((new - old).astype(np.float32)) <= 1e-5).mean(), abs=2e-3)
    assert found["unchanged_bfloat16"] == pytest.approx(2 / 3, abs=0.02)
    assert abs(found["principal"] - LEADING) < 0.02, "weights chosen at random are principal by chance"
    assert 0 < found["angle"] < np.pi / 2 and found["value_change"] > 0
    assert set(found) <= set(MEASURES)
    names, matches, ranks = matrices(before), [], []
    for name in names:
        old, new = (np.linalg.svd(w[name].double().numpy(), full_matrices=False) for w in (before, after))
        k = round(LEADING * len(old[1]))
        matches += [(np.abs(a.T @ b).max(0)[:k] < 0.5).mean() for a, b in ((old[0], new[0]), (old[2].T, new[2].T))]
        share = np.linalg.svd((after[name] - before[name]).double().numpy(), compute_uv=False)
        ranks.append(np.exp(entropy(share[share > 0])))
    assert found["intruders"] == pytest.approx(np.mean(matches))
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-3)
    nothing = weight_drift(before, before)
    assert np.isnan(nothing["principal"])
    assert nothing["weight_change"] == 0 and nothing["unchanged"] == nothing["unchanged_bfloat16"] == 1


def test_a_matrix_without_full_rank_has_a_finite_change_of_values():
    name, weight = "model.layers.0.self_attn.q_proj.weight", torch.randn(8, 6)
    weight[:, 0] = 0
    assert np.isfinite(weight_drift({name: weight}, {name: weight + 0.1})["value_change"])


def test_a_large_new_direction_is_an_intruder():
    rng = np.random.default_rng(3)
    weight, u, v = rng.normal(size=(40, 32)), rng.normal(size=(40, 1)), rng.normal(size=(32, 1))
    name = "model.layers.0.self_attn.q_proj.weight"
    found = weight_drift({name: torch.tensor(weight)}, {name: torch.tensor(weight + u @ v.T)})
    new = np.linalg.svd(weight + u @ v.T, full_matrices=False)
    old = np.linalg.svd(weight, full_matrices=False)
    wanted = [(np.abs(a.T @ b).max(0)[:8] < 0.5).mean() for a, b in ((old[0], new[0]), (old[2].T, new[2].T))]
    assert found["intruders"] == pytest.approx(np.mean(wanted)) and found["intruders"] > 0
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_an_update_of_the_principal_weights_alone_is_seen():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    name = "model.layers.0.self_attn.q_proj.weight"
    u, s, v = np.linalg.svd(weight.numpy().astype(float), full_matrices=False)
    k = max(1, round(LEADING * 30))
    size = np.abs((u[:, :k] * s[:k]) @ v[:k])
    chosen = torch.tensor(size > np.quantile(size, 1 - LEADING / 2))
    assert weight_drift({name: weight}, {name: weight + chosen * 0.1 * weight.sign()})["principal"] == 1
    others = torch.tensor(size < np.quantile(size, 0.5))
    assert weight_drift({name: weight}, {name: weight + others * 0.1 * weight.sign()})["principal"] == 0
