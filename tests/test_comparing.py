"""oodlib.comparing, model_surgery and the commands: whole checkpoints, cut off and gone on with."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from oodlib import figures_compare as figures
from oodlib.cli import app
from oodlib.comparing import Comparing, Settings, count_of, read_arrays
from oodlib.model_surgery import Restoration
from oodlib.models import load_model, load_tokenizer, load_weights, model_folder
from oodlib.spectra import compare
from oodlib.surgery import restore

BASE = model_folder("tiny")
DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The tiny base with noise of a thousandth of each matrix's norm."""
    path = tmp_path_factory.mktemp("models") / "tuned"
    model, tokenizer = load_model(BASE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight += 1e-3 * weight.norm() / noise.norm() * noise
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_table_says_what_compare_says(tuned, tmp_path):
    comparing = Comparing("tiny", [str(tuned)], tmp_path, Settings(ks=("25%", 3)))
    assert len(list(comparing.run())) == 28
    table = pd.read_parquet(tmp_path / "tuned.parquet")
    assert list(table.columns) == ["matrix", "layer", "module", "rows", "cols", "k", "metric", "value"]
    assert table["matrix"].nunique() == 28 and table["value"].map(math.isfinite).all()
    before, after = (load_weights(folder)[DOWN] for folder in (BASE, tuned))
    mine = table[table["matrix"] == DOWN]
    assert set(mine["layer"]) == {2} and set(mine["module"]) == {"down_proj"}
    assert (mine["rows"].iloc[0], mine["cols"].iloc[0]) == before.shape
    found = compare(before, after, 3)
    value = mine[(mine["k"] == 3) & (mine["metric"] == "angle_left_max")]["value"].item()
    assert value == pytest.approx(found.angles_left.max(), abs=1e-9)
    arrays = read_arrays(tmp_path / "tuned", DOWN)
    np.testing.assert_allclose(arrays["values_after"], found.values1, atol=1e-9)
    assert mine[mine["metric"] == "change_ratio"]["value"].item() == pytest.approx(1e-3, rel=1e-3)
    short = pd.read_csv(tmp_path / "tuned.csv")
    assert len(short) == 56 and short["change_ratio"].between(0.9e-3, 1.1e-3).all()
    row = short[(short["matrix"] == DOWN) & (short["k"] == 3)].iloc[0]
    assert row["angle"] == pytest.approx(
        np.degrees((found.angles_left.mean() + found.angles_right.mean()) / 2), rel=1e-4
    )
    assert row["gap_supports"] == (found.wedin_bound(3) < math.pi / 2)
    assert 0.2 < short["above_noise"].mean() < 0.8 and 0.5 < (short["noise_angle"] / short["angle"]).median() < 2
    tokens = pd.read_parquet(tmp_path / "tuned" / "tokens.parquet")
    assert set(tokens[tokens["matrix"] == DOWN]["side"]) == {"left"} and tokens["token"].str.len().min() > 0
    assert json.loads((tmp_path / "tuned" / "about.json").read_text())["matrices"] == 28


def test_what_is_unfit_is_left_out_with_a_remark(tuned, tmp_path):
    state = load_weights(tuned)
    state[DOWN] = state[DOWN].clone()
    state[DOWN][0, 0] = math.nan
    (tmp_path / "broken").mkdir()
    save_file(state, tmp_path / "broken" / "model.safetensors")
    done = oodlib("compare", "tiny", tmp_path / "broken", tuned, "--out", tmp_path / "out", "--modules", "down_proj")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "of 16384 entries are NaN" in said or "entries are NaN" in said
    tables = figures.read_tables(tmp_path / "out")
    assert tables["broken"]["matrix"].nunique() == 3 and tables["tuned"]["matrix"].nunique() == 4
    remarks = json.loads((tmp_path / "out" / "broken" / "about.json").read_text())["remarks"]
    assert f"{DOWN} of {tmp_path / 'broken'}: 1 of" in remarks[DOWN]


def test_nothing_to_compare_and_a_name_taken_are_said(tuned, tmp_path):
    for name in ("x/c", "y/c"):
        (tmp_path / name).mkdir(parents=True)
        save_file({DOWN: torch.ones(3, 3)}, tmp_path / name / "model.safetensors")
    with pytest.raises(ValueError, match=r"nothing of .* can be compared with tiny: .*: missing in c"):
        Comparing("tiny", [str(tmp_path / "x/c")], tmp_path / "out")
    base = str(tmp_path / "x/c")
    list(Comparing(base, [str(tmp_path / "x/c")], tmp_path / "out").run())
    with pytest.raises(ValueError, match=r"holds results with checkpoint .*x/c, not .*y/c: choose another folder"):
        Comparing(base, [str(tmp_path / "y/c")], tmp_path / "out")


def test_no_name_of_a_matrix_leads_out_of_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    name = "../../../up/x.layers.0.q_proj.weight"
    save_file({name: torch.eye(3)}, tmp_path / "a" / "model.safetensors")
    list(Comparing(str(tmp_path / "a"), [str(tmp_path / "a")], tmp_path / "in" / "out").run())
    assert {p.name for p in tmp_path.iterdir()} == {"a", "in"} and [p.name for p in (tmp_path / "in").iterdir()] == [
        "out"
    ]
    assert read_arrays(tmp_path / "in" / "out" / "a", name)["values_before"].tolist() == [1, 1, 1]


def test_a_broken_tokenizer_and_a_single_direction_stop_nothing(tuned, tmp_path):
    (tmp_path / "base").mkdir()
    save_file(load_weights(BASE), tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    words = ("--out", tmp_path / "out", "--k", "1", "--modules", "v_proj", "--layers", "0")
    done = oodlib("compare", tmp_path / "base", tuned, *words)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out" / "tuned" / "tokens.parquet").exists()


def test_goes_on_where_it_stopped(tuned, tmp_path):
    whole = Comparing("tiny", [str(tuned)], tmp_path / "whole", Settings(modules=("v_proj", "o_proj")))
    list(whole.run())
    cut = Comparing("tiny", [str(tuned)], tmp_path / "cut", Settings(modules=("v_proj", "o_proj")))
    work = cut.run()
    first = [next(work).name for _ in range(3)]
    work.close()
    damaged = tmp_path / "cut" / "tuned" / f"{first[2]}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Comparing("tiny", [str(tuned)], tmp_path / "cut", Settings(modules=("v_proj", "o_proj")))
    assert [pair.name for pair in again.run()] == [p.name for p, _ in whole.todo()] + sorted(
        set(whole_names(whole)) - set(first[:2]), key=whole_names(whole).index
    )
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f / "tuned.parquet") for f in ("whole", "cut")))
    more = Comparing("tiny", [str(tuned)], tmp_path / "cut", Settings(modules=("v_proj", "o_proj", "q_proj")))
    assert {pair.module for pair, _ in more.todo()} == {"q_proj"}
    with pytest.raises(ValueError, match=r"holds results with k \['5%', '20%', '50%'\], not \['4'\]: choose another"):
        Comparing("tiny", [str(tuned)], tmp_path / "cut", Settings(ks=(4,)))
    with pytest.raises(ValueError, match=r"holds results with base tiny, not .*tuned: choose another"):
        Comparing(str(tuned), [str(tuned)], tmp_path / "cut", Settings())


def whole_names(comparing):
    return [pair.name for pair in comparing.targets[0].pairs]


@pytest.mark.parametrize(("k", "rank", "count"), [("20%", 64, 13), (5, 64, 5), ("7", 64, 7), ("0.1%", 64, 1)])
def test_count_of(k, rank, count):
    assert count_of(k, rank) == count


@pytest.mark.parametrize("k", [0, -3, "0%", "120%", "many", "2.5", ""])
def test_count_of_refuses(k):
    with pytest.raises(ValueError, match="allowed are a number of directions from 1, or a share"):
        count_of(k, 10)


def test_figures_show_what_the_tables_say_and_can_be_read(tuned, tmp_path, smallest_text):
    list(Comparing("tiny", [str(tuned), str(BASE)], tmp_path).run())
    tables = figures.read_tables(tmp_path)
    assert set(tables) == {"tuned", "base"}
    heat = figures.where(tables).axes[0].collections[0]
    assert heat.get_facecolors().shape[0] == 28
    assert len(figures.angle_spectra(tmp_path, {"tuned": tables["tuned"]}).axes[0].lines) == 6
    assert len(figures.value_spectra(tmp_path, tables).axes[0].lines) == 3
    three = {f"tuned {i}": tables["tuned"] for i in range(3)}
    assert smallest_text(figures.where(three)) >= 9


# the commands


def oodlib(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_compares(tuned, tmp_path):
    done = oodlib("compare", "tiny", tuned, "--out", tmp_path, "--modules", "o_proj", "--layers", "0-1,3", "--k", "10%")
    assert done.exit_code == 0, done.output
    assert pd.read_parquet(tmp_path / "tuned.parquet")["layer"].unique().tolist() == [0, 1, 3]
    assert {f.name for f in (tmp_path / "figures").glob("*.png")} == {"where.png", "angles.png", "values.png"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--k", "200%"), "k '200%': allowed are"),
        (("--layers", "a-b"), "layers 'a-b': write numbers and ranges"),
        (("--modules", "nothing"), "no matrix matches modules nothing"),
        (("--layers", "17"), "no matrix matches"),
        (("--layers", "1-2-3"), "layers '1-2-3': write numbers and ranges"),
    ],
)
def test_the_command_says_what_is_wrong(tuned, tmp_path, words, complaint):
    done = oodlib("compare", "tiny", tuned, "--out", tmp_path / "out", *words)
    assert done.exit_code == 2 and complaint in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


# surgery on whole models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_writes_a_model_that_loads(tuned, tmp_path, dtype):
    recipient, out = tmp_path / "recipient", tmp_path / "edited"
    AutoModelForCausalLM.from_pretrained(tuned, dtype=dtype).save_pretrained(recipient, max_shard_size="100KB")
    load_tokenizer(tuned).save_pretrained(recipient)
    dry = oodlib("restore", recipient, "tiny", "--out", out, "--k-top", "25%", "--layers", "1", "--dry-run")
    assert dry.exit_code == 0 and "7 of 51 tensors would change" in dry.output and not out.exists()
    done = oodlib("restore", recipient, "tiny", "--out", out, "--k-top", "25%", "--layers", "1")
    assert done.exit_code == 0, done.output
    before, after, donor = (load_weights(folder) for folder in (recipient, out, BASE))
    assert len(list(out.glob("*.safetensors"))) == len(list(recipient.glob("*.safetensors"))) > 1
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 7 and all(".layers.1." in name for name in changed)
    for name in changed:
        k = count_of("25%", min(before[name].shape))
        assert torch.equal(after[name], restore(before[name], donor[name], "vectors", k))
    with safe_open(next(out.glob("*.safetensors")), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype
    assert load_tokenizer(out).get_vocab() == load_tokenizer(BASE).get_vocab()
    assert not list(out.parent.glob(".*"))


def test_restore_refuses(tuned, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    for change, complaint in (
        ({"part": "both"}, "unknown part 'both'"),
        ({"out": tmp_path / "full"}, "holds something already"),
        ({"k_top": "90%", "k_tail": "20%"}, "k_top \\+ k_tail must be at most"),
        ({"k_top": "0"}, "k '0': allowed are"),
        ({"donor": "nobody"}, "unknown checkpoint 'nobody'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Restoration(**{"recipient": str(tuned), "donor": "tiny", "out": tmp_path / "out", **change})


def test_restore_keeps_shards_in_folders_and_copies_no_other_weights(tmp_path):
    source = tmp_path / "source"
    for place, layer in (("a", 0), ("z", 1)):
        (source / place).mkdir(parents=True)
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        save_file({name: torch.eye(4), f"norm{layer}": torch.ones(4)}, source / place / "m.safetensors")
    named = {f"model.layers.{i}.self_attn.q_proj.weight": f"{p}/m.safetensors" for i, p in ((0, "a"), (1, "z"))}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    (source / "flax_model.msgpack").write_bytes(b"old weights")
    (source / "config.json").write_text("{}")
    assert len(list(Restoration(str(source), str(source), tmp_path / "out").run())) == 2
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    index = {"model.safetensors.index.json", "config.json", "oodlib_restore.json"}
    assert files == {"a/m.safetensors", "z/m.safetensors"} | index


def test_restore_cut_off_leaves_nothing(tuned, tmp_path):
    work = Restoration(str(tuned), "tiny", tmp_path / "out").run()
    next(work)
    work.close()
    assert list(tmp_path.iterdir()) == []
