"""Engines: whichever answers, the answers are the same; the fastest is taken, and one that fails is not."""

from types import SimpleNamespace

import pytest
import torch

from oodlib.config import load_config
from oodlib.inference import generation as engines
from oodlib.inference.episodes import play
from oodlib.inference.generation import ENGINES, choose
from oodlib.models.loading import load_model, model_folder
from oodlib.tasks.base import get_task

TASK = get_task("general_points")


@pytest.fixture(scope="module")
def tiny():
    return load_model(model_folder("tiny"))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_plays_the_same_dialogues(tiny, engine):
    hands = TASK.split("ood")[::400]
    told = play(*tiny, TASK, hands, "compact", 32, tries=3, engine="dynamic")
    found = play(*tiny, TASK, hands, "compact", 32, tries=3, engine=engine)
    assert [e.tokens for e in found] == [e.tokens for e in told]
    assert [e.own for e in found] == [e.own for e in told]


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling_follows_the_seed(tiny, engine):
    def sampled(seed):
        torch.manual_seed(seed)
        return [e.tokens for e in play(*tiny, TASK, TASK.split("id")[:6], "compact", 16, 1, 6, 1.0, engine)]

    assert sampled(0) == sampled(0) != sampled(1)


def actor(seconds, clock, answered):
    def answer():
        clock[0] += seconds
        if seconds < 0:
            raise RuntimeError("out of pages")
        answered.append(seconds)

    return lambda *_: SimpleNamespace(answer=answer)


def test_on_a_gpu_the_fastest_is_taken_and_said(monkeypatch, capsys):
    clock, answered = [0.0], []
    gpu = SimpleNamespace(device=torch.device("cuda", 0), num_parameters=lambda: 1)
    monkeypatch.setattr(engines, "_chosen", {})
    monkeypatch.setattr(engines.time, "perf_counter", lambda: clock[0])
    for name, seconds in (("dynamic", 3.0), ("static", 2.0), ("continuous", -1.0)):
        monkeypatch.setitem(ENGINES, name, actor(seconds, clock, answered))
    assert choose(gpu, None, [[1]], 8) == "static"
    said = capsys.readouterr().out
    assert "'static'" in said and "dynamic 3.00 s" in said and "out of pages" in said
    count = len(answered)
    assert choose(gpu, None, [[1]], 8) == "static" and len(answered) == count, "timed once"
    assert choose(gpu, None, [[1]], 8, "dynamic") == "dynamic"
    for name in ENGINES:
        monkeypatch.setitem(ENGINES, name, actor(-1.0, clock, answered))
    with pytest.raises(RuntimeError, match="no engine"):
        choose(gpu, None, [[1]], 9)


def test_on_a_cpu_nothing_is_timed(tiny):
    assert choose(*tiny, [], 8) == "dynamic"


def test_a_preset_may_name_the_engine():
    assert load_config("tiny", {"machine": {"rollouts": "static"}}).machine.engine == "static"
    assert load_config("tiny", {"machine": {"rollouts": "vllm"}}).machine.engine == "auto"
    with pytest.raises(ValueError, match=r"rollouts.*dynamic"):
        load_config("tiny", {"machine": {"rollouts": "psychic"}})
