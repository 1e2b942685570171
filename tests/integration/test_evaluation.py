"""Evaluation: batching changes nothing, losses are what a plain computation gives, models load and refuse."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from oodlib.config import load_config
from oodlib.inference.episodes import generate
from oodlib.inference.evaluation import answer_loss, beliefs, evaluate, evaluate_model, summarise
from oodlib.inference.generation import shared_beginning
from oodlib.inference.token_probabilities import continuation_probabilities
from oodlib.models.base import build_model, build_tokenizer
from oodlib.models.loading import load_model, load_weights
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.tasks import OUTCOMES, get_task
from oodlib.tasks.general_points import RULES

TASK = get_task("general_points")


@pytest.fixture(scope="module")
def tiny():
    return load_model(model_folder("tiny"))


def prompts(n):
    return [TASK.prompt(p, "compact") for p in TASK.split("ood")[: n * 7 : 7]]


def test_batches_give_what_one_at_a_time_gives(tiny):
    texts = prompts(9)
    texts[3] = texts[3].replace("as json :", "as cards formula :")  # another length: padding is needed
    together = generate(*tiny, texts, 32, batch_size=4)
    assert together == [generate(*tiny, [t], 32)[0] for t in texts]


def test_sampling_follows_torch_s_seed(tiny):
    def draw(seed):
        torch.manual_seed(seed)
        return generate(*tiny, prompts(8), 32, temperature=1.0)

    assert draw(1) == draw(1) != draw(2)


def test_answer_loss_is_the_mean_log_likelihood_of_the_answer(tiny):
    model, tokenizer = tiny
    rng = np.random.default_rng(0)
    problems = TASK.split("id")[:400:80]
    asked = [TASK.prompt(p, "compact") for p in problems]
    given = [TASK.answer(p, "compact", rng) for p in problems]
    found = answer_loss(model, tokenizer, asked, given, batch_size=2)
    for loss, a, g in zip(found, asked, given, strict=True):
        start = tokenizer(a)["input_ids"]
        ids = torch.tensor([[*tokenizer(a + g)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            log = torch.log_softmax(model.double()(ids).logits[0, :-1], -1)
        model.float()
        wanted = -log[torch.arange(len(log)), ids[0, 1:]][len(start) - 1 :].mean()
        assert loss == pytest.approx(float(wanted), abs=1e-5)


def test_every_problem_is_judged_once(tiny):
    judged = evaluate(*tiny, TASK, "id", "compact", 32, loss=True, every=60)
    assert judged["problem"].tolist() == [TASK.label(p) for p in TASK.split("id")[::60]]
    metrics = summarise(judged)
    shares = [metrics["accuracy"], *(metrics[o] for o in OUTCOMES[1:])]
    assert sum(shares) == pytest.approx(1) and metrics["loss"] > 0
    assert metrics["malformed"] > 0.9, "the base model does not keep to the format"


def test_the_base_model_reads_the_rule_and_fits_the_package():
    folder = model_folder("tiny")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 5e6
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    model, tokenizer = load_model(folder)
    right = []
    for value in (3, 7, 12):  # a face card must be what the rule says
        hand = TASK.problem(["K", "2", "4", "6"], {"J": 10, "Q": 10, "K": value})
        text = generate(model, tokenizer, [TASK.prompt(hand, "compact").replace("json", "numbers formula")], 32)[0]
        right.append(text.split()[0] == str(value))
    assert sum(right) >= 2


def test_unknown_words_do_not_crash(tiny):
    assert isinstance(generate(*tiny, ["what is this ?"], 8)[0], str)


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"'gpt-9'.*tiny"):
        model_folder("gpt-9")


def test_a_folder_without_safetensors_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*safetensors"):
        load_weights(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("tiny"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder)


def test_sharded_weights_are_read_together(tmp_path):
    whole = load_weights(model_folder("tiny"))
    names = sorted(whole)
    save_file({n: whole[n] for n in names[:10]}, tmp_path / "model-1.safetensors")
    save_file({n: whole[n] for n in names[10:]}, tmp_path / "model-2.safetensors")
    assert set(load_weights(tmp_path)) == set(whole)


def test_matrices_are_the_projections():
    model = build_model(build_tokenizer(TASK.words()))
    found = matrices(model.state_dict())
    assert len(found) == 4 * 7
    place = found["model.layers.3.mlp.down_proj.weight"]
    assert (place.layer, place.module) == (3, "down_proj")
    assert not any("embed" in name or "lm_head" in name or "norm" in name or "bias" in name for name in found)


def test_every_split_and_the_task_s_own_measures_are_in_the_tables(tiny):
    config = load_config("smoke", {"eval.every": 50})
    tables = evaluate_model(config, *tiny, ("sft", "sft", 0, 5, 3), probes=True)
    measured, hands = tables["measurements"], tables["hands"]
    probes = {probe.name for probe in TASK.splits.probes} | {f"cloze_{cloze.rule}" for cloze in TASK.clozes("compact")}
    assert set(measured["split"]) == {*TASK.splits.names, *probes}
    assert list(hands["split"].unique()) == list(TASK.splits.names)
    assert set(measured.loc[measured["split"] == "face_3", "n"]) == {3}
    for split, judged in hands.groupby("split"):
        rows = measured[measured["split"] == split].set_index("metric")["value"]
        problems = TASK.split(split)[::50]
        texts = generate(*tiny, [TASK.prompt(p, "compact") for p in problems], 32)
        measures = [TASK.verify(p, t).measures for p, t in zip(problems, texts, strict=True)]
        for name in ("numbers_read", "old_numbers", "old_rule"):
            assert judged[name].tolist() == [m[name] for m in measures]
            assert rows[name] == pytest.approx(judged[name].mean())
    assert "face_3" not in set(evaluate_model(config, *tiny, ("sft", "sft", 0, 5, 3))["measurements"]["split"])


@pytest.mark.parametrize("style", ["compact", "chat"])
def test_clozes_break_off_where_the_answer_s_own_number_stands(style):
    """What a cloze begins, with the value of its rule, is how a right answer begins."""
    for cloze in TASK.clozes(style):
        cards = re.search(r"cards ([^;]+) ;" if style == "compact" else r"Cards: \[(.+)\]", as_words(cloze.prompt))[1]
        cards = re.findall(r"\w+", cards)
        assert cards[0] == cloze.symbol and len(cloze.values) == 13
        if cloze.rule == "none":
            assert "count as" not in as_words(cloze.prompt) and "J =" not in as_words(cloze.prompt)
            continue
        problem = TASK.problem(cards, {face: RULES[cloze.rule][face] for face in "JQK"})
        assert TASK.prompt(problem, style) == cloze.prompt
        if TASK.solutions(problem.numbers):
            answer = as_words(TASK.answer(problem, style, np.random.default_rng(0)))
            assert answer.startswith(cloze.begun + cloze.values[cloze.under[cloze.rule]])


def as_words(text):
    return text if isinstance(text, str) else text[-1]["content"]


def test_continuations_have_the_probability_that_a_whole_reading_gives_them(tiny):
    model, tokenizer = tiny
    context, texts = "J = 5 Q = 6 K = 7 ; cards J", ["2 3", "4", "11 12 13"]
    found = continuation_probabilities(model, tokenizer, [context], texts)[0]
    losses = answer_loss(model, tokenizer, [context] * 3, texts)  # the mean over its tokens and the end's
    wanted = []
    for text, loss in zip(texts, losses, strict=True):
        ids = tokenizer(f"{context} {text}", return_tensors="pt")["input_ids"]
        n = len(text.split())
        end = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)[tokenizer.eos_token_id]
        wanted.append(-loss * (n + 1) - end.item())
    assert found.tolist() == pytest.approx(torch.tensor(wanted).softmax(0).tolist(), abs=1e-4)


@pytest.mark.parametrize("beginning", ["", "J = 5 Q = 6 K = 7 ; " * 4])
def test_texts_read_together_have_the_probabilities_that_they_have_alone(tiny, beginning):
    """Some begin alike and are of other lengths; the beginning is read once where it is long."""
    model, tokenizer = tiny
    contexts = [beginning + rest for rest in ("cards J", "cards Q 5", "cards", "numbers 11 12 13", *["cards K"] * 7)]
    texts = ["2 3", "4", "11 12 13"]
    assert bool(shared_beginning(tokenizer(contexts)["input_ids"])) == bool(beginning)
    together = continuation_probabilities(model, tokenizer, contexts, texts)
    alone = torch.cat([continuation_probabilities(model, tokenizer, [context], texts) for context in contexts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    losses = answer_loss(model, tokenizer, contexts, ["2 3 + 4"] * len(contexts))
    wanted = [answer_loss(model, tokenizer, [context], ["2 3 + 4"])[0] for context in contexts]
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)


def test_a_model_s_beliefs_are_rows_of_probabilities(tiny):
    rows = pd.DataFrame(beliefs(*tiny, TASK, "compact"), columns=["split", "metric", "value", "n"])
    assert rows["split"].unique().tolist() == ["cloze_none", "cloze_id", "cloze_new_rule", "cloze_ood"]
    rows[["symbol", "number"]] = rows["metric"].str.split("=", expand=True)
    sums = rows.groupby(["split", "symbol"])["value"].sum()
    assert len(sums) == 12 and sums.to_numpy() == pytest.approx(1, abs=1e-5)
    assert rows.set_index(["split", "metric"])["value"]["cloze_ood", "K=13"] > 0.9, "the base reads this rule"
