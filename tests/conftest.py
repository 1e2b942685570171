import warnings

import pytest

from oodlib.presets import load_preset
from oodlib.runs import Run

warnings.filterwarnings("ignore")


@pytest.fixture
def tiny_run(tmp_path):
    """A run with the least of everything: one SFT checkpoint, one start of RL."""

    def make(**changes):
        small = {"sft_steps": 4, "sft_checkpoints": [0, 2, 4], "sft_batch_size": 4, "rl_from": [4], "rl_steps": 2}
        values = {"out": str(tmp_path / "run"), "reference": False, "jobs": 1, **small, **changes}
        return Run(load_preset("smoke", **values))

    return make


@pytest.fixture
def few_hands(monkeypatch):
    """Both splits cut to a few hands, for tests of how things are run rather than of what comes out."""
    from oodlib.tasks import get_task

    task = get_task("general_points")
    whole = task.split
    monkeypatch.setattr(type(task), "split", lambda self, name: whole(name)[::60])
