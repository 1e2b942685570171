import warnings

import pytest

from oodlib.presets import load_preset
from oodlib.runs import Run

warnings.filterwarnings("ignore")


@pytest.fixture
def tiny_run(tmp_path):
    """A run with the least of everything: one SFT checkpoint, one start of RL."""

    def make(**changes):
        small = {
            "eval_every": 60,
            "sft_steps": 4,
            "sft_checkpoints": [0, 2, 4],
            "sft_batch_size": 4,
            "rl_from": [4],
            "rl_steps": 2,
        }
        values = {"out": str(tmp_path / "run"), "reference": False, "jobs": 1, **small, **changes}
        return Run(load_preset("smoke", **values))

    return make
