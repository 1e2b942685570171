"""`oodlib compare` and `oodlib restore`: whole checkpoints, cut off and gone on with."""

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

from oodlib.cli import app
from oodlib.models.loading import load_model, load_tokenizer, load_weights
from oodlib.models.sources import model_folder
from oodlib.plots import comparison as figures
from oodlib.spectral import Edit, compare, restore
from oodlib.spectral.comparison import Comparing, read_arrays
from oodlib.spectral.surgery import ModelEdit
from oodlib.spectral.svd import count_of

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
    comparing = Comparing("tiny", [str(tuned)], tmp_path, ks=("25%", 3))
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


def test_the_same_comparison_writes_the_same_bytes(tuned, tmp_path):
    """A killed run that goes on must end as an undisturbed one; safetensors writes several metadata in any order."""
    written = []
    for name in "abc":
        list(Comparing("tiny", [str(tuned)], tmp_path / name, modules=["down_proj"]).run())
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file() and path.suffix != ".lock")
        written.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert len(written[0]) >= 7 and written[0] == written[1] == written[2]


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
    tables = {name: pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("broken", "tuned")}
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


def test_unchanged_matrices_are_not_said_to_have_turned(tuned, tmp_path):
    same = oodlib("compare", "tiny", BASE, "--out", tmp_path / "same", "--modules", "v_proj")
    assert same.exit_code == 0 and "4 of 4 matrices are unchanged" in same.output and "turned most" not in same.output
    short = pd.read_csv(tmp_path / "same" / f"{BASE.name}.csv")
    assert not short["above_noise"].any() and (short["change_ratio"] == 0).all()
    bare = oodlib("compare", "tiny", tuned, "--out", tmp_path / "bare", "--modules", "v_proj", "--no-null")
    assert bare.exit_code == 0 and pd.read_csv(tmp_path / "bare" / "tuned.csv")["above_noise"].isna().all()
    dry = oodlib("restore", tuned, tuned, "--dry-run", "--modules", "v_proj")
    assert "4 of 51 tensors would be rewritten; nothing was written" in " ".join(dry.output.split())
    missing = oodlib("restore", tuned, "tiny", "--modules", "v_proj")
    assert missing.exit_code == 2 and "--out is missing" in missing.output


def test_goes_on_where_it_stopped(tuned, tmp_path):
    whole = Comparing("tiny", [str(tuned)], tmp_path / "whole", modules=("v_proj", "o_proj"))
    list(whole.run())
    cut = Comparing("tiny", [str(tuned)], tmp_path / "cut", modules=("v_proj", "o_proj"))
    work = cut.run()
    first = [next(work).name for _ in range(3)]
    work.close()
    (tmp_path / "cut" / "tuned" / f"{first[2]}.safetensors").unlink()
    again = Comparing("tiny", [str(tuned)], tmp_path / "cut", modules=("v_proj", "o_proj"))
    made = [pair.name for pair in again.run()]  # several at a time, so that some were made that were not yet told of
    assert first[2] in made and not set(first[:2]) & set(made)
    assert not whole.todo() and not again.todo()
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f / "tuned.parquet") for f in ("whole", "cut")))
    more = Comparing("tiny", [str(tuned)], tmp_path / "cut", modules=("v_proj", "o_proj", "q_proj"))
    assert {pair.module for pair, _ in more.todo()} == {"q_proj"}
    with pytest.raises(ValueError, match=r"holds results with k \['5%', '20%', '50%'\], not \['4'\]: choose another"):
        Comparing("tiny", [str(tuned)], tmp_path / "cut", ks=(4,))
    with pytest.raises(ValueError, match=r"holds results with base tiny, not .*tuned: choose another"):
        Comparing(str(tuned), [str(tuned)], tmp_path / "cut")


def test_figures_show_what_the_tables_say_and_can_be_read(tuned, tmp_path, smallest_text):
    comparing = Comparing("tiny", [str(tuned), str(BASE)], tmp_path)
    list(comparing.run())
    tables = {target.name: target.table() for target in comparing.targets}
    assert set(tables) == {"tuned", BASE.name}
    heat = figures.where(tables).axes[0].collections[0]
    assert heat.get_array().size == 28
    assert len(figures.spectra(tmp_path, {"tuned": tables["tuned"]}).axes[1].lines) >= 6
    three = {f"tuned {i}": tables["tuned"] for i in range(3)}
    assert smallest_text(figures.where(three)) >= 9


def save(folder, weights):
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def made_up(modules, seed, layers=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{i}.x.{m}.weight": torch.randn(12, 12, generator=generator)
        for i in range(layers)
        for m in modules
    }


def test_a_row_of_the_map_is_its_module_also_where_a_checkpoint_lacks_one(tmp_path):
    names = ("q_proj", "k_proj", "v_proj")
    full = made_up(names, 0)
    part = {name: w + 0.1 * torch.ones_like(w) for name, w in full.items() if "q_proj" not in name}
    base = save(tmp_path / "base", full)
    moved = {name: w.roll(1, 0) if "q_proj" in name else w for name, w in full.items()}
    for order in (("moved", "part"), ("part", "moved")):
        folders = [save(tmp_path / f"{order[0]}-first-{name}", {"moved": moved, "part": part}[name]) for name in order]
        out = tmp_path / f"out-{order[0]}"
        comparing = Comparing(base, folders, out)
        list(comparing.run())
        figure = figures.where({target.name: target.table() for target in comparing.targets})
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(names)
        moved_angles = figure.axes[2 * order.index("moved") + 1]  # a row a checkpoint: change, angle
        angles = moved_angles.collections[0].get_array().reshape(3, -1)
        assert (angles[0] > 1).all() and np.allclose(angles[1:], 0, atol=0.05)


def test_matrices_in_no_layer_stand_in_tables_and_figures(tmp_path):
    weights = {"lm_head.weight": torch.randn(20, 12), **made_up(("q_proj",), 0)}
    a, b = (
        save(tmp_path / n, {k: w + x * torch.randn_like(w) for k, w in weights.items()})
        for n, x in (("a", 0), ("b", 0.1))
    )
    for modules, rows in ((("lm_head",), 1), (("lm_head", "q_proj"), 3)):
        words = [w for m in modules for w in ("--modules", m)]
        done = oodlib("compare", a, b, "--out", tmp_path / str(rows), "--k", 2, *words)
        assert done.exit_code == 0, done.output
        short = pd.read_csv(tmp_path / str(rows) / "b.csv")
        assert len(short) == rows and short["angle"].gt(0).all() and "lm_head.weight" in set(short["matrix"])


def test_a_checkpoint_of_no_numbers_leaves_the_others_their_tables(tmp_path):
    weights = made_up(("q_proj",), 0)
    base = save(tmp_path / "base", weights)
    nan = save(tmp_path / "nan", {name: w * float("nan") for name, w in weights.items()})
    sound = save(tmp_path / "sound", made_up(("q_proj",), 1))
    done = oodlib("compare", base, nan, sound, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "NaN" in done.output and (tmp_path / "out" / "sound.csv").exists()
    alone = oodlib("compare", base, nan, "--out", tmp_path / "alone")
    assert alone.exit_code == 2 and "no matrix could be analysed" in alone.output


def test_a_k_above_the_rank_means_all_directions(tmp_path):
    weights = made_up(("q_proj", "o_proj"), 0) | {"model.layers.0.x.k_proj.weight": torch.randn(4, 12)}
    a, b = (
        save(tmp_path / n, {k: w + x * torch.randn_like(w) for k, w in weights.items()})
        for n, x in (("a", 0), ("b", 0.3))
    )
    done = oodlib("compare", a, b, "--out", tmp_path / "out", "--k", 1, "--k", 2, "--k", 6)
    assert done.exit_code == 0 and "100%" in done.output
    ks = pd.read_csv(tmp_path / "out" / "b.csv").groupby("matrix")["k"].agg(list)
    assert ks["model.layers.0.x.k_proj.weight"] == [1, 2, 4]  # as many as it has


def test_a_zero_matrix_that_was_trained_is_not_called_unchanged(tmp_path):
    name = "model.layers.0.x.q_proj.weight"
    a, b = save(tmp_path / "a", {name: torch.zeros(8, 8)}), save(tmp_path / "b", {name: torch.eye(8)})
    list(Comparing(a, [b], tmp_path / "out").run())
    table = pd.read_parquet(tmp_path / "out" / "b.parquet")
    assert table[table["metric"] == "change_ratio"]["value"].item() == math.inf


# the commands


def oodlib(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_compares(tuned, tmp_path):
    done = oodlib("compare", "tiny", tuned, "--out", tmp_path, "--modules", "o_proj", "--layers", "0-1,3", "--k", "10%")
    assert done.exit_code == 0, done.output
    assert pd.read_parquet(tmp_path / "tuned.parquet")["layer"].unique().tolist() == [0, 1, 3]
    assert {f.name for f in (tmp_path / "figures").glob("*.png")} == {"where.png", "spectra.png"}


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
    assert dry.exit_code == 0 and "7 of 51 tensors would be rewritten;" in dry.output and not out.exists()
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
    for words, complaint in (
        (("--part", "both"), "unknown part 'both'"),
        (("--out", tmp_path / "full"), "holds something already"),
        (("--k-top", "90%", "--k-tail", "20%"), "k_top + k_tail must be at most"),
        (("--k-top", "0"), "k '0': allowed are"),
    ):
        done = oodlib("restore", tuned, "tiny", "--out", tmp_path / "out", *words)
        assert done.exit_code == 2 and complaint in " ".join(done.output.split())
    with pytest.raises(ValueError, match="unknown checkpoint 'nobody'"):
        ModelEdit(str(tuned), "nobody", Edit())
    assert {p.name for p in tmp_path.iterdir()} == {"full"}


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
    assert len(ModelEdit(str(source), str(source), Edit()).write(tmp_path / "out")) == 2
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    index = {"model.safetensors.index.json", "config.json", "oodlib_restore.json"}
    assert files == {"a/m.safetensors", "z/m.safetensors"} | index


def test_restore_cut_off_leaves_nothing(tuned, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelEdit(str(tuned), "tiny", Edit()).write(tmp_path / "out", stop)
    assert list(tmp_path.iterdir()) == []


# folders as people have them


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A recipient with everything that may lie beside weights, and a donor."""
    folder = tmp_path_factory.mktemp("house")
    weights = made_up(("q_proj", "up_proj"), 0) | {"model.layers.0.mlp.experts.down_proj": torch.randn(3, 4, 5)}
    save(folder / "recipient", weights)
    save(folder / "donor", {name: w + 0.1 * torch.randn_like(w) for name, w in weights.items()})
    keep = ("config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "vocab.bpe",
            "spiece.vocab", "tekken.json", "dict.bin", "notes.yaml", "sub/deeper/extra.json", "LICENSE")  # fmt: skip
    leave = ("flax_model.msgpack", "pytorch_model.bin.index.json", "model.safetensors.index.json", "optimizer.pt",
             "original/consolidated.00.pth", ".cache/huggingface/x.json")  # fmt: skip
    for name in (*keep, *leave, "checkpoint-3/config.json", "checkpoint-3/model.safetensors"):
        (folder / "recipient" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "recipient" / name).write_text(name)
    return folder, keep


def test_restore_copies_everything_but_weights_and_names_the_rest(house, tmp_path):
    folder, keep = house
    done = oodlib("restore", folder / "recipient", folder / "donor", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {*keep, "model.safetensors", "oodlib_restore.json"}
    assert all((tmp_path / "out" / name).read_text() == name for name in keep)
    for name in ("flax_model.msgpack", "original/consolidated.00.pth", "checkpoint-3"):
        assert f"{name}: not copied" in done.output


def test_restore_edits_each_expert_of_a_stack(house, tmp_path):
    folder, _ = house
    before, donor = (load_weights(folder / name) for name in ("recipient", "donor"))
    ModelEdit(str(folder / "recipient"), str(folder / "donor"), Edit("values")).write(tmp_path / "out")
    after, name = load_weights(tmp_path / "out"), "model.layers.0.mlp.experts.down_proj"
    for i in range(3):
        torch.testing.assert_close(after[name][i], restore(before[name][i], donor[name][i], "values"))
        assert not torch.equal(after[name][i], before[name][i])


@pytest.mark.parametrize("part", ["values", "vectors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.bfloat16])
def test_restore_writes_no_inf(tmp_path, part, dtype):
    name, large = "model.layers.0.x.q_proj.weight", {"values": 1e39, "vectors": 1.0}[part]
    weight = torch.randn(8, 8, dtype=torch.float64)
    recipient = save(tmp_path / "recipient", {name: weight.to(dtype)})
    donor = save(tmp_path / "donor", {name: weight * large})
    done = oodlib("restore", recipient, donor, "--part", part, "--out", tmp_path / "out")
    if done.exit_code == 0:
        assert load_weights(tmp_path / "out")[name].isfinite().all()
    else:
        assert name in done.output and not (tmp_path / "out").exists() and "Traceback" not in done.output
    assert (done.exit_code == 0) == (part == "vectors" and dtype != torch.float8_e4m3fn)


def test_a_matrix_of_nan_is_named_with_its_file(house, tmp_path):
    folder, _ = house
    state = load_weights(folder / "donor")
    name = "model.layers.1.x.up_proj.weight"
    state[name] = state[name] * float("nan")
    bad = save(tmp_path / "bad", state)
    done = oodlib("restore", folder / "recipient", bad, "--out", tmp_path / "out")
    assert done.exit_code == 2 and f"{name} of {bad}: 144 of 144 entries are NaN" in done.output
    assert not (tmp_path / "out").exists()


def test_names_are_shown_as_they_are(tmp_path):
    names = ("run[lr=1e-4]", "[red]x[/red]", "пробег $x_1$ $ :smile:")
    matrix = "model.layers.0.x[/b].q_proj.weight"
    base = save(tmp_path / "base", {matrix: torch.randn(8, 8)})
    folders = [save(tmp_path / name.replace("/", "∕"), {matrix: torch.randn(8, 8)}) for name in names]
    done = oodlib("compare", base, *folders, "--out", tmp_path / "out[1]", "--no-null")
    assert done.exit_code == 0, done.output
    for folder in folders:
        assert f"{folder.rpartition('/')[2]}: turned most: {matrix}" in done.output
    assert f"are in {tmp_path / 'out[1]'}" in done.output
    edited = oodlib("restore", base, folders[0], "--out", tmp_path / "[i]")
    assert f"-> {tmp_path / '[i]'}" in edited.output


def test_where_an_adapter_s_base_lies_is_an_option(tuned, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(BASE)[0], LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = "/home/someone/base"
    model.save_pretrained(tmp_path / "adapter")
    words = ("compare", tuned, tmp_path / "adapter", "--out", tmp_path / "out", "--modules", "v_proj")
    missing = oodlib(*words)
    assert missing.exit_code == 2 and f"{tmp_path / 'adapter'} stands on '/home/someone/base'" in missing.output
    assert "--base" in missing.output
    done = oodlib(*words, "--base", BASE)
    assert done.exit_code == 0, done.output
    name, after = "model.layers.0.self_attn.v_proj.weight", model.double().merge_and_unload().state_dict()
    table = pd.read_parquet(tmp_path / "out" / "adapter.parquet").query("metric == 'change_norm'").set_index("matrix")
    distance = float((after[name] - load_weights(tuned)[name].double()).norm())
    assert table["value"][name] == pytest.approx(distance, rel=1e-6)
    dry = oodlib("restore", tuned, tmp_path / "adapter", "--dry-run", "--base", BASE, "--modules", "v_proj")
    assert dry.exit_code == 0 and "4 of 51 tensors" in dry.output
