import os
import warnings

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # several that share the cores; before torch
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if hasattr(os, "sched_setaffinity"):  # each to cores of its own: threads of two that wait for each other crawl
        cores, mine = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, cores[mine % len(cores) :: workers])

import pytest
import torch
from matplotlib.axis import Axis
from matplotlib.text import Text

from oodlib.config import load_config
from oodlib.run import Run

warnings.filterwarnings("ignore")
EXAMPLE_LINE = '{"prompt": "2 + 3 =\\n", "completion": "5", "answer": 5}'


@pytest.fixture(autouse=True)
def own_threads():
    """A job that ran in this process has set its own number of threads, which would stay for all later tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_run(tmp_path):
    """A run with the least of everything: one SFT checkpoint, one start of RL."""

    def make(changes=None):
        small = {
            "out": str(tmp_path / "run"),
            "eval.every": 60,
            "sft.steps": 4,
            "sft.checkpoints": [0, 2, 4],
            "sft.batch_size": 4,
            "rl.starts": [4],
            "rl.steps": 2,
            "machine.reference": False,
            "machine.jobs": 1,
        }
        return Run(load_config("smoke", {**small, **(changes or {})}))

    return make


def shown_texts(figure):
    """The texts that a reader sees, tick labels included."""
    figure.draw_without_rendering()
    beyond = set()  # labels of ticks outside the axis' limits, which matplotlib keeps and does not draw
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        far = 1e-6 * (high - low)
        ticks = axis.get_major_ticks() + axis.get_minor_ticks()
        beyond |= {label for t in ticks if not low - far <= t.get_loc() <= high + far for label in (t.label1, t.label2)}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]
    return [t for t in texts if t.get_window_extent().width > 0]


@pytest.fixture
def smallest_text():
    """The points of a figure's smallest text in a notebook: 100 dots an inch, each 1/96 inch, at most 9.5 inches."""

    def smallest(figure):
        texts = shown_texts(figure)
        width = figure.get_tightbbox().width + 0.2  # as saved: cropped, with 0.1 inches around it
        return min(t.get_fontsize() for t in texts) * 100 / 96 * min(1, 9.5 / width)

    return smallest


@pytest.fixture
def texts_on_texts():
    """Pairs of a figure's texts that lie on each other by more than a pixel."""

    def overlapping(figure):
        boxes = [(t.get_text(), t.get_window_extent()) for t in shown_texts(figure)]
        return [
            (one, other)
            for i, (one, a) in enumerate(boxes)
            for other, b in boxes[:i]
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
        ]

    return overlapping


@pytest.fixture
def data(tmp_path):
    """Writes a file of lines for each split; its options, as a configuration has them."""

    def write(*lines, checker="number", **splits):
        options = {"checker": checker}
        for name, mine in {"id": lines or [EXAMPLE_LINE], "ood": lines or [EXAMPLE_LINE], **splits}.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("\n".join(mine) + "\n")
            options[name] = str(path)
        return options

    return write
