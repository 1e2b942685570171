"""Runs: done or not done, nothing in between."""

import errno
import multiprocessing
import os

import pandas as pd
import pytest

from oodlib.config import load_config
from oodlib.io import write_whole
from oodlib.run import COLUMNS, Job, Run
from oodlib.stages import STAGES, ensure, waves

JOB = Job("sft/seed-10/step-0", "sft", "oodlib.training.sft:measure", 10, {"step": 0})


def rows(stage="sft", value=1.0):
    return pd.DataFrame([(stage, "sft", 0, 0, 10, "id", "accuracy", value, 3)], columns=COLUMNS)


def test_a_job_is_done_only_with_its_own_parameters(tiny_run):
    run = tiny_run()
    assert not run.done(JOB)
    run.finish(JOB, {"measurements": rows()})
    assert run.done(JOB)
    assert not tiny_run({"sft.learning_rate": 2e-3}).done(JOB)
    assert tiny_run({"rl.learning_rate": 2e-3}).done(JOB), "SFT does not depend on RL's parameters"
    assert tiny_run({"machine.jobs": 2, "machine.eval_batch_size": 3}).done(JOB)


def test_tables_are_collected_from_finished_jobs_only(tiny_run):
    run = tiny_run()
    run.finish(JOB, {"measurements": rows()})
    run.finish(Job("sft/seed-10/step-9", "sft", "x:y", 10), {"measurements": rows(value=9.0)})
    run.collect([JOB])
    assert run.table("measurements")["value"].tolist() == [1.0]
    assert list(run.table("measurements").columns) == COLUMNS


def test_a_stage_without_finished_jobs_keeps_its_rows_if_the_parameters_are_the_same(tiny_run):
    run = tiny_run()
    run.note("sft", 1.0, 1.0)
    rl = Job("rl/seed-10/x", "rl", "x:y", 10)
    run.finish(rl, {"measurements": rows("rl")})
    run.collect([rl])
    run.finish(JOB, {"measurements": rows()})
    (run.part(rl) / "key.json").unlink()
    run.collect([JOB, rl])
    assert set(run.table("measurements")["stage"]) == {"sft", "rl"}
    other = tiny_run({"sft.learning_rate": 2e-3})
    other.finish(JOB, {"measurements": rows()})
    other.collect([JOB, rl])
    assert set(other.table("measurements")["stage"]) == {"sft"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    write_whole(path, lambda p: p.write_text("old"))

    def half(p):
        p.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no space is left.*untouched"):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_is_replaced_whole(tmp_path):
    def write(word):
        def make(folder):
            folder.mkdir()
            (folder / word).write_text(word)

        return make

    write_whole(tmp_path / "part", write("a"))
    write_whole(tmp_path / "part", write("b"))
    assert [p.name for p in (tmp_path / "part").iterdir()] == ["b"]


def _hold(folder, ready, release):
    with Run(load_config("smoke"), folder).lock():
        ready.set()
        release.wait(30)


def test_two_runs_cannot_write_one_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(60)
    with pytest.raises(RuntimeError, match="another run is writing"), Run(load_config("smoke"), tmp_path).lock():
        pass
    release.set()
    other.join()
    with Run(load_config("smoke"), tmp_path).lock():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="not allowed"), Run(load_config("smoke"), tmp_path / "run").lock():
        pass


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write into .*file.x: Not a directory; what was there is untouched"):
        write_whole(tmp_path / "file" / "x" / "y", lambda path: path.write_text("z"))


def test_a_folder_under_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write into"), Run(load_config("smoke"), tmp_path / "file" / "x").lock():
        pass


def test_every_stage_lists_jobs_of_its_own_names():
    config = load_config("tiny-seeds")
    names = [job.name for stage in STAGES for wave in waves(config, stage) for job in wave]
    assert len(names) == len(set(names))
    assert {job.seed for job in waves(config, "sft")[0]} == set(config.seeds)
    with pytest.raises(ValueError, match=r"'rlhf'.*sft, rl"):
        waves(config, "rlhf")


def test_a_reference_is_used_only_for_the_same_parameters_and_only_if_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("oodlib.run.ROOT", tmp_path)
    committed = Run(load_config("smoke"), tmp_path / "outputs" / "smoke")
    job = waves(committed.config, "sft")[0][0]
    committed.finish(job, {"measurements": rows()})
    committed.note("sft", 1.0, 1.0)
    committed.collect([job])
    import shutil

    shutil.rmtree(committed.folder / "parts")
    run = Run(load_config("smoke"), tmp_path / "elsewhere")
    ensure(run, "sft")
    assert "reference run" in capsys.readouterr().out
    assert run.table("measurements", "sft")["value"].tolist() == [1.0]
    assert not run.own and not (tmp_path / "elsewhere").exists()
    assert Run(load_config("smoke", {"seed": 11}), tmp_path / "elsewhere").reference("sft") is None
    assert run.reference("rl") is None
