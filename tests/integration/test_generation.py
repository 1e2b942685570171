"""Generators: whichever answers, the answers are the same."""

import pytest
import torch

from oodlib.config import load_config
from oodlib.inference.episodes import play
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task
from oodlib.training import rl

TASK = get_task("general_points")
GENERATORS = ("dynamic", "continuous")


@pytest.fixture(scope="module")
def tiny():
    return load_model(model_folder("tiny"))


def test_every_generator_gives_the_same_greedy_answers(tiny):
    problems = TASK.split("ood")[::400]
    one, other = (play(*tiny, TASK, problems, "compact", 32, attempts=3, generator=name) for name in GENERATORS)
    assert [e.tokens for e in one] == [e.tokens for e in other]
    assert [e.own for e in one] == [e.own for e in other]


@pytest.mark.parametrize("generator", GENERATORS)
def test_sampling_follows_the_seed(tiny, generator):
    def sampled(seed):
        torch.manual_seed(seed)
        return [e.tokens for e in play(*tiny, TASK, TASK.split("id")[:6], "compact", 16, 1, 6, 1.0, generator)]

    assert sampled(0) == sampled(0) != sampled(1)


def test_a_configuration_names_the_generator():
    assert load_config("tiny", {"machine.generator": "continuous"}).machine.generator == "continuous"
    with pytest.raises(ValueError, match=r"machine\.generator = 'psychic'.*dynamic"):
        load_config("tiny", {"machine.generator": "psychic"})


def test_vllm_is_taken_where_it_can_be_and_named_where_it_cannot(monkeypatch):
    automatic, named, other = (load_config("smoke", {"machine.generator": g}) for g in ("auto", "vllm", "dynamic"))
    monkeypatch.setattr(rl, "find_spec", lambda name: name == "vllm")
    for gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert rl.by_vllm(automatic) is gpu and not rl.by_vllm(other)
    with pytest.raises(ValueError, match=r"machine\.generator 'vllm' needs a GPU"):
        rl.by_vllm(named)


def test_what_all_dialogues_begin_with_is_read_once_and_changes_no_answer(tiny, monkeypatch):
    problems = TASK.split("id")[::120]  # one rule, so that prompts begin alike
    apart = play(*tiny, TASK, problems, "compact", 32, attempts=2)
    read = []
    monkeypatch.setattr("oodlib.inference.generation.SHARED", 4)
    with tiny[0].register_forward_pre_hook(lambda _, args, of: read.append(of["input_ids"].shape), with_kwargs=True):
        shared = play(*tiny, TASK, problems, "compact", 32, attempts=2)
    assert [e.tokens for e in shared] == [e.tokens for e in apart]
    (rows, beginning), (everyone, rest) = read[:2]
    assert (rows, everyone) == (1, len(problems)) and beginning >= 4
    assert beginning + rest == max(len(e.prompt) for e in shared)
