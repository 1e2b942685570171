"""Every stage, and the notebooks, on data of one's own."""

import json
import subprocess
import sys

import pytest

from oodlib import Run, ensure
from oodlib.cli.execute import NOTEBOOKS, STAGE_NOTEBOOKS
from oodlib.config import load_config
from oodlib.inference.episodes import play
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task

EXAMPLE = load_config("custom").task.options


def test_every_stage_runs_on_one_s_own_data(tiny_run):
    small = {"task.max_new_tokens": 4, "rl.baselines": [], "surgery.embeddings": False, "surgery.draws": 0}
    run = tiny_run({"task.name": "jsonl", "task.options": EXAMPLE, "eval.every": 3, "surgery.donors": [2], **small})
    for stage in ("sft", "rl", "surgery"):
        ensure(run, stage)
    table = run.table("measurements").query("metric == 'accuracy'")
    assert set(table["stage"]) == {"sft", "rl", "surgery"} and set(table["split"]) == {"id", "ood"}
    assert table["n"].isin([4, 10]).all() and table["value"].between(0, 1).all()
    assert set(run.table("rollouts")["outcome"]) <= {"correct", "wrong_value", "malformed"}
    assert run.table("hands")["problem"].astype(str).str.fullmatch(r"[JQK] [-+] \d").all()
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["settings"]["task"]["options"] == get_task("jsonl", EXAMPLE).parameters()
    again = Run(run.config)
    ensure(again, "surgery")
    assert not again.borrowed


@pytest.mark.parametrize("style", ["compact", "chat"])
def test_after_a_wrong_attempt_the_checker_s_message_is_heard(data, style):
    model, tokenizer = load_model(model_folder("tiny"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' : ' + m.content }} <eos> {% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant : {% endif %}"
    task = get_task("jsonl", data('{"prompt": "J = 10 ; J + 1 =\\n", "completion": "5", "answer": 24}'))
    (episode,) = play(model, tokenizer, task, task.split("id"), style, 4, attempts=3)
    heard = tokenizer.decode([t for t, own in zip(episode.tokens, episode.own, strict=True) if not own])
    assert len(episode.verdicts) == 3 and not episode.solved and "<unk>" in heard


@pytest.mark.slow
def test_the_five_notebooks_run_on_the_template(tmp_path):
    command = [sys.executable, "-m", "oodlib.cli", "reproduce", "--preset", "custom", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {p.name for p in NOTEBOOKS.glob(STAGE_NOTEBOOKS)}
    assert {p.name for p in (tmp_path / "run" / "notebooks").iterdir()} == names
    assert "C9" in done.stdout
    assert "jsonl" in (tmp_path / "run" / "notebooks" / "00_task_and_base.ipynb").read_text(encoding="utf-8")
