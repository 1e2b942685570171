"""Runs: done or not done, nothing in between."""

import errno
import multiprocessing
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from oodlib.config import load_config
from oodlib.io import COLUMNS, read_bytes, write_whole
from oodlib.merge import merge
from oodlib.results import Results
from oodlib.run import STAGES, Job, Run
from oodlib.stages import ensure, waves

JOB = Job("sft/seed-10/step-0", "sft", "oodlib.training.sft:measure", 10, {"step": 0})


HAND = pd.DataFrame([("sft", "sft", 0, 0, 10, "id", "p", "correct")],
                    columns=["stage", "arm", "from_step", "step", "seed", "split", "problem", "outcome"])  # fmt: skip


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


def test_where_the_measurements_were_removed_the_error_says_so(tiny_run):
    run = tiny_run()
    with pytest.raises(RuntimeError, match=r"no SFT measurements of seed 10.*same command again"):
        run.peak_step(10)
    run.finish(JOB, {"measurements": rows().assign(split="ood")})
    run.collect([JOB])
    assert run.peak_step(10) == 0


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(ValueError, match="mine is a folder"):
        write_whole(tmp_path / "mine", lambda path: path.write_text("x"))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "precious"]


def test_hands_that_stand_twice_and_half_characters_are_told_with_the_file(tiny_run):
    run = tiny_run()
    run.finish(JOB, {"measurements": rows(), "hands": HAND})
    run.collect([JOB])
    pd.concat([HAND, HAND]).to_parquet(run.folder / "hands.parquet")
    with pytest.raises(ValueError, match=r"hands\.parquet: a problem stands in it twice"):
        Results(run.folder).table("hands")
    (run.folder / "manifest.json").write_text('{"git": "\\ud800"}')
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read: it holds half of a character"):
        Results(run.folder).manifest  # noqa: B018
    (run.folder / "manifest.json").write_text('{"git": "\\ud83d\\ude00"}')
    assert Results(run.folder).manifest["git"] == "\U0001f600"


def test_a_path_that_the_system_refuses_is_one_line_with_its_name(tmp_path):
    with pytest.raises(ValueError, match="xxx cannot be read: "):
        read_bytes(tmp_path / ("x" * 300))


def test_amounts_of_a_manifest_are_numbers(tiny_run):
    run = tiny_run()
    run.note("sft", 1.0, 1.0)
    file = run.folder / "manifest.json"
    for wrong in ('"5"', "NaN", "-1"):
        file.write_text(file.read_text().replace('"wall_s": 1.0', f'"wall_s": {wrong}'))
        with pytest.raises(ValueError, match=r"manifest\.json: stages\.sft\.wall_s"):
            Results(run.folder).manifest  # noqa: B018
        file.write_text(file.read_text().replace(f'"wall_s": {wrong}', '"wall_s": 1.0'))


def test_a_raised_method_makes_a_stage_and_those_after_it_stale_and_nothing_else(tiny_run, monkeypatch):
    run, rl = tiny_run(), Job("rl/seed-10/x", "rl", "x:y", 10)
    for job in (JOB, rl):
        run.finish(job, {"measurements": rows(job.stage)})
    monkeypatch.setitem(STAGES, "rl", replace(STAGES["rl"], method=99))
    assert run.done(JOB) and not run.done(rl)
    monkeypatch.setitem(STAGES, "sft", replace(STAGES["sft"], method=99))
    assert not run.done(JOB)


def test_a_baseline_s_result_is_shared_by_runs_that_differ_in_what_it_ignores(tiny_run):
    def key(arm, **changes):
        run = tiny_run(changes)
        return run.key(Job("x", "rl", "x:y", 10, {"arm": arm, "from_step": 4})), run.checkpoints(10, arm, 4).name

    assert key("sft_continued") == key("sft_continued", **{"rl.kl": 0.1, "rl.temperature": 0.7})
    assert key("rejection_sampling") != key("rejection_sampling", **{"rl.temperature": 0.7})
    assert key("averaging") == key("averaging", **{"rl.learning_rate": 1e-4})
    fresh, bonus = "rejection_sampling_fresh", "entropy_bonus"
    assert key(fresh) == key(fresh, **{"rl.algorithm": "ppo", "rl.clip": 0.1}) != key(fresh, **{"rl.temperature": 0.7})
    assert key(bonus) == key(bonus, **{"rl.gae_lambda": 0.5}) != key(bonus, **{"rl.clip": 0.1})
    assert key("rl") != key("rl", **{"rl.kl": 0.1})
    assert key("rl") == key("rl", **{"rl.baselines": ["averaging"], "surgery.shares": [0.5]})
    weights = key("averaging", **{"eval.attempts": 2, "rl.attempts": 1})[1]
    assert weights == key("averaging")[1], "how weights are measured does not change them"


def test_results_are_read_without_the_settings_that_made_them(tiny_run):
    run = tiny_run()
    run.finish(JOB, {"measurements": rows()})
    run.collect([JOB])
    run.note("sft", 1.0, 1.0)
    results = Results(run.folder)
    assert results.table("measurements", "sft")["value"].tolist() == [1.0] and results.table("hands").empty
    assert {"tree", "method", "wall_s"} <= set(results.manifest["stages"]["sft"])
    assert results.manifest["settings"]["sft"]["learning_rate"] == run.config.sft.learning_rate
    (run.folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        _ = results.manifest


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


def test_what_a_killed_process_was_writing_is_gone_after_the_next_write(tmp_path):
    def write():
        write_whole(tmp_path / "part", lambda p: (p.mkdir(), (p / "half").touch(), os.kill(os.getpid(), 9)))

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    write_whole(tmp_path / "other", lambda p: p.write_text("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_this_process_is_writing_is_left_alone(tmp_path):
    def write(p):
        p.write_text("x")
        write_whole(tmp_path / "other", lambda q: q.write_text("y"))

    write_whole(tmp_path / "one", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


@pytest.mark.parametrize(
    "error",
    [
        "I/O error: No space left on device (os error 28)",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_whatever_a_writer_raises_for_lack_of_space_is_told_as_such(tmp_path, error):
    class Strange(Exception):
        pass

    def write(path):
        raise Strange(error)

    with pytest.raises(OSError, match=r"cannot write into .*space.*; what was there is untouched"):
        write_whole(tmp_path / "x", write)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", b"[]", "expected a dict"),
        ("manifest.json", b'{"stages": [1]}', "stages: input should be a valid dictionary"),
        ("manifest.json", b"{}", "no splits"),
        ("manifest.json", b'{"splits": {"trained": {}}}', r"splits\.trained\.name: field required"),
        ("manifest.json", b"[" * 99999, "nested too deeply"),
        ("manifest.json", '{"preset": "é"}'.encode("latin-1"), "not UTF-8"),
        ("measurements.csv", b"", "cannot be read"),
        ("measurements.csv", b"a,b\n1,2\n", "no column stage, arm"),
        ("measurements.csv", b",".join(map(str.encode, COLUMNS)) + b"\nsft,a,0,0,1,id,b,0.1x,3\n", "column value"),
        ("hands.parquet", b"PAR1" * 9, "cannot be read"),
        ("hands.parquet", b"version https://git-lfs.github.com/spec/v1\n", "cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    results = Results(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}\b.*{words}") as caught:
        _ = results.splits if name == "manifest.json" else results.table(name.split(".")[0])
    assert "\n" not in str(caught.value)


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
    monkeypatch.setattr("oodlib.run.outputs_folder", lambda: tmp_path / "outputs")
    committed = Run(load_config("smoke"), tmp_path / "outputs" / "smoke")
    job = waves(committed.config, "sft")[0][0]
    committed.finish(job, {"measurements": rows()})
    committed.note("sft", 1.0, 1.0)
    committed.collect([job])
    shutil.rmtree(committed.folder / "parts")
    run = Run(load_config("smoke"), tmp_path / "elsewhere")
    ensure(run, "sft")
    assert "reference run" in capsys.readouterr().out
    assert run.table("measurements", "sft")["value"].tolist() == [1.0]
    assert not run.own and not (tmp_path / "elsewhere").exists()
    assert Run(load_config("smoke", {"seed": 11}), tmp_path / "elsewhere").reference("sft") is None
    assert run.reference("rl") is None
    committed.note("rl", 1.0, 1.0)
    assert run.reference("rl") and run.reference("sft")
    fewer = Run(load_config("smoke", {"rl.baselines": ["sft_continued"]}), tmp_path / "elsewhere")
    assert fewer.reference("sft") and not fewer.reference("rl"), "the committed run has other rows"


def test_the_manifest_forgets_only_the_stages_whose_settings_changed(tiny_run):
    run = tiny_run()
    for stage in ("sft", "rl", "surgery"):
        run.note(stage, 1.0, 1.0)
    other = tiny_run({"rl.kl": 0.1})
    other.note("rotation", 1.0, 1.0)
    assert set(Results(run.folder).manifest["stages"]) == {"sft", "surgery", "rotation"}


def measured(run, seed, value):
    """A finished run of one seed whose SFT says one value."""
    job = replace(JOB, name=f"sft/seed-{seed}/step-0", seed=seed)
    run.finish(job, {"measurements": rows(value=value).assign(seed=seed)})
    run.note("sft", 2.0, float(seed))
    run.collect([job])
    return run.folder


def test_runs_of_other_seeds_become_one_that_says_where_each_seed_was_measured(tmp_path):
    def run(seed, folder, **changes):
        return Run(load_config("smoke", {"seed": seed, **changes}), tmp_path / folder)

    folders = [measured(run(seed, f"run-{seed}"), seed, seed / 100) for seed in (10, 11, 12)]
    both = merge([folders[1], folders[0]], tmp_path / "both")
    three = merge([both.folder, folders[2]], tmp_path / "three")
    table = three.table("measurements", "sft")
    assert dict(zip(table["seed"], table["value"], strict=True)) == {10: 0.1, 11: 0.11, 12: 0.12}
    manifest = three.manifest
    assert manifest["seeds"] == [10, 11, 12] and [head["seeds"] for head in manifest["runs"]] == [[11], [10], [12]]
    assert manifest["stages"]["sft"]["wall_s"] == 6.0 and manifest["stages"]["sft"]["peak_mib"] == 12
    assert all(head["stages"]["sft"]["tree"] for head in manifest["runs"])
    assert three.holds("sft", run(10, "x").settings("sft"), [10, 11, 12])

    other = measured(run(13, "other", **{"sft.learning_rate": 2e-3}), 13, 0.5)
    (tmp_path / "empty").mkdir()
    shutil.copytree(folders[1], tmp_path / "half")
    (tmp_path / "half" / "measurements.csv").unlink()
    for folders_, words in {
        (folders[0], other): ["other", "sft.learning_rate", "0.002"],
        (both.folder, folders[0]): ["run-10", "seed 10"],
        (folders[0],): ["at least two"],
        (tmp_path / "empty", folders[0]): ["empty", "no finished run"],
        (folders[0], tmp_path / "half"): ["half", "no finished run"],
        (folders[0], folders[0]): ["run-10", "seed 10"],
    }.items():
        with pytest.raises(ValueError) as caught:
            merge(list(folders_), tmp_path / "new")
        assert all(word in str(caught.value) for word in words), caught.value
        assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="holds something already"):
        merge(folders[:2], both.folder)


def test_a_merged_run_appears_with_what_is_added_to_it_or_not_at_all(tmp_path):
    def cut_off(folder):
        raise KeyboardInterrupt

    runs = [Run(load_config("smoke", {"seed": seed}), tmp_path / f"run-{seed}") for seed in (10, 11)]
    folders = [measured(run, seed, 0.5) for run, seed in zip(runs, (10, 11), strict=True)]
    with pytest.raises(KeyboardInterrupt):
        merge(folders, tmp_path / "both", cut_off)
    assert not (tmp_path / "both").exists()
    merge(folders, tmp_path / "both", lambda folder: (folder / "card").touch())
    assert (tmp_path / "both" / "card").exists() and (tmp_path / "both" / "manifest.json").exists()


def test_a_stage_that_only_one_run_has_keeps_its_rows_and_is_not_done(tmp_path):
    runs = [Run(load_config("smoke", {"seed": seed}), tmp_path / f"run-{seed}") for seed in (10, 11)]
    folders = [measured(run, seed, 0.5) for run, seed in zip(runs, (10, 11), strict=True)]
    more = replace(JOB, name="surgery/seed-11/edit", stage="surgery", seed=11)
    runs[1].finish(more, {"measurements": rows(stage="surgery").assign(seed=11)})
    runs[1].note("surgery", 2.0, 1.0)
    runs[1].collect([more])
    for order in (folders, folders[::-1]):
        both = merge(order, tmp_path / f"first-{order[0].name}")
        assert set(both.table("measurements", "sft")["seed"]) == {10, 11}
        assert set(both.table("measurements", "surgery")["seed"]) == {11}
        stages = both.manifest["stages"]
        assert set(stages) == {"sft", "surgery"} and stages["surgery"]["seeds"] == [11] and "seeds" not in stages["sft"]
        settings = runs[1].settings("surgery")
        assert not both.holds("surgery", settings, [10, 11]), "it is not measured of both"
        third = measured(Run(load_config("smoke", {"seed": 12}), tmp_path / f"more-{order[0].name}"), 12, 0.5)
        three = merge([both.folder, third], tmp_path / f"three-{order[0].name}")
        assert three.manifest["stages"]["surgery"]["seeds"] == [11]
        assert sorted(len(head["stages"]) for head in both.manifest["runs"]) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.source": "nowhere"}, ["nowhere", "tiny"]),
        ({"model.source": "hub:x:y"}, ["hub:x:y", "REVISION"]),
        ({"machine.launch": "ddq"}, ["machine.launch", "ddq", "fsdp2"]),
        ({"surgery.layers": [1, 9]}, ["surgery.layers = [1, 9]", "4 layers"]),
    ],
)
def test_what_is_not_there_is_found_out_before_any_work(changes, words, tmp_path):
    run = Run(load_config("smoke", {**changes, "machine.reference": False}), tmp_path / "run")
    with pytest.raises(ValueError) as caught:
        ensure(run, "sft")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not list(run.folder.glob("parts/*")) and not (run.folder / "checkpoints").exists()
