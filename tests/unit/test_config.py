"""Configuration: what is in params/ is valid; what is wrong is one line that names it and says what is allowed."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oodlib.config import PARAMS, Config, Section, config_from, config_names, load_config, read_value

SECTIONS = [
    n for n, f in Config.model_fields.items() if isinstance(f.annotation, type) and issubclass(f.annotation, Section)
]


@pytest.mark.parametrize("name", config_names())
def test_every_configuration_in_params_is_valid_and_names_itself(name):
    config = load_config(name)
    assert config.preset == name
    assert config.folder().name == name
    filed = yaml.safe_load((PARAMS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(filed) <= {*Config.model_fields, "like"}
    assert config_from(filed) == config, "as papermill -f gives it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft.step": 3}, ["sft.step ", "3", "did you mean sft.steps?", "checkpoints"]),
        ({"learning_rate": 3}, ["learning_rate", "sft.learning_rate"]),
        ({"sft_learning_rate": 3}, ["sft_learning_rate", "sft.learning_rate"]),
        ({"stf": {"steps": 3}}, ["stf", "did you mean sft?"]),
        ({"sft": 3}, ["sft = 3", "mapping", "learning_rate"]),
        ({"sft": [3]}, ["sft = [3]", "mapping"]),
        ({"sft.steps": "many"}, ["sft.steps", "many", "integer"]),
        ({"sft.steps": 2.5}, ["sft.steps", "2.5", "integer"]),
        ({"sft.steps": True}, ["sft.steps", "True", "integer"]),
        ({"sft.steps": 0}, ["sft.steps", "0", "greater than or equal to 1"]),
        ({"sft.steps": None}, ["sft.steps", "None", "integer"]),
        ({"sft": {"learning_rate": -1.0}}, ["sft.learning_rate", "-1.0", "greater than 0"]),
        ({"sft.learning_rate": "fast"}, ["sft.learning_rate", "fast", "number"]),
        ({"sft.schedule": "step"}, ["sft.schedule", "step", "cosine"]),
        ({"rl.algorithm": "dpo"}, ["rl.algorithm", "dpo", "grpo", "rloo", "ppo"]),
        ({"rl.algorithm": "rloo", "rl.attempts": 3}, ["rl.attempts = 3", "rloo", "grpo", "ppo"]),
        ({"rl.algorithm": "ppo", "rl.kl": 0.1}, ["rl.kl = 0.1", "ppo"]),
        ({"eval.attempts": 6}, ["eval.attempts", "6", "less than or equal to 5"]),
        ({"sft.mitigation": "rpsf"}, ["sft.mitigation", "rpsf", "did you mean 'rpsft'?", "lora", "none"]),
        ({"rl.baselines": ["magic"]}, ["rl.baselines", "magic", "sft_continued"]),
        ({"rl.baselines": ["rl", "averaging"]}, ["rl.baselines", "'rl'", "averaging"]),
        ({"rl.baselines": ["averaging", "averaging"]}, ["rl.baselines", "averaging", "twice"]),
        ({"rl.starts": [7]}, ["rl.starts", "7", "sft.checkpoints"]),
        ({"rl.steps": 3}, ["rl.steps", "3", "rl.updates_per_batch"]),
        ({"rl.prompts": 3}, ["rl.prompts", "3", "rl.updates_per_batch"]),
        ({"sft.checkpoints": [0, 5]}, ["sft.checkpoints", "24"]),
        ({"task.name": "chess"}, ["task.name", "chess", "general_points"]),
        ({"task.options": {"a": "b"}}, ["task.options", "'a'", "none"]),
        ({"task.prompt_style": "haiku"}, ["task.prompt_style", "haiku", "compact", "chat"]),
        ({"surgery.shares": [1.5]}, ["surgery.shares.0", "1.5", "less than or equal to 1"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": "3"}, ["seed", "'3'", "integer"]),
        ({"machine": {"lunch": "ddp"}}, ["machine.lunch", "ddp", "machine.launch"]),
        ({"sft.options": {"weight_decai": 0.1}}, ["sft.options.weight_decai", "0.1", "weight_decay"]),
        ({"sft.options": {"weight_decay": "heavy"}}, ["sft.options", "heavy", "SFTConfig"]),
        ({"sft.options": {"learning_rate": 0.1}}, ["sft.options.learning_rate", "another setting"]),
        ({"rl.options": {"trust_remote_code": True}}, ["rl.options.trust_remote_code", "never run"]),
        ({"rl.options": {"loss_tipe": 5}}, ["rl.options.loss_tipe", "loss_type"]),
        (
            {"rl.options": {"num_completions_to_print": "all"}},
            ["rl.options.num_completions_to_print", "all", "integer"],
        ),
        ({"model.lora": {"rank": 4}}, ["model.lora.rank", "4"]),
        ({"model.lora": {"r": "four"}}, ["model.lora.r", "four", "integer"]),
        ({"model.lora": {"r": 4}, "sft.mitigation": "rpsft"}, ["model.lora", "sft.mitigation"]),
        ({"machine.launch": "fsdp2", "rl.attempts": 2}, ["machine.launch", "fsdp2", "ddp"]),
        ({"machine.processes": 2}, ["machine.processes = 2", "machine.launch"]),
        ({"task.name": "os:path"}, ["task.name", "os:path", "verify"]),
        ({"": 3}, ["''", "SECTION.NAME"]),
        ({"sft.": 3}, ["'sft.'", "SECTION.NAME"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(changes, words):
    with pytest.raises(ValueError) as caught:
        load_config("smoke", changes)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 1000


def test_changes_by_dotted_name_and_by_section_say_the_same():
    one = load_config("smoke", {"sft.learning_rate": 1e-4, "sft": {"batch_size": 8}, "rl": {"kl": 0.1}, "seed": None})
    other = load_config("smoke").changed({"rl.kl": 0.1, "sft": {"batch_size": 8, "learning_rate": 1e-4}})
    assert one == other and one.sft.steps == load_config("smoke").sft.steps


def test_numbers_are_numbers_at_every_depth(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("like: smoke\nsft: {learning_rate: 1e-4, options: {adam_epsilon: 1e-7, max_grad_norm: 5e-1}}\n")
    config = load_config(path)
    assert config.sft.learning_rate == 1e-4 and config.sft.options == {"adam_epsilon": 1e-7, "max_grad_norm": 0.5}
    given = config_from({"preset": "smoke", "sft": {"learning_rate": "1e-4", "options": {"adam_epsilon": "1e-7"}}})
    assert given.sft.learning_rate == 1e-4 and given.sft.options["adam_epsilon"] == 1e-7, "as papermill -y reads it"
    assert read_value("1e-4") == 1e-4 and read_value("[1, 2e3]") == [1, 2e3] and read_value("ddp") == "ddp"
    for text in ("{", "a: b: c"):
        with pytest.raises(ValueError, match="not a value"):
            read_value(text)


def test_like_is_followed_through_several_files_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("like: smoke\nsft: {batch_size: 8}\nrl: {kl: 0.2}\n")
    (tmp_path / "b.yaml").write_text("like: sub/a.yaml\nrl: {clip: 0.3}\n")
    (tmp_path / "c.yaml").write_text("like: b.yaml\nrl: {kl: 0.1}\n")
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "c.yaml")
    assert (config.preset, config.sft.batch_size, config.rl.clip, config.rl.kl) == ("c", 8, 0.3, 0.1)
    assert config.rl.samples == load_config("smoke").rl.samples


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("just words", ["no parameters"]),
        ("- 1\n- 2\n", ["no parameters"]),
        ("", ["no parameters"]),
        ("sft: {steps: 3\n", ["line"]),
        ("like: mine.yaml\n", ["circle", "mine.yaml"]),
        ("like: nowhere\n", ["nowhere", "like", "tiny"]),
        ("like: smoke\nseed: 1\nseed: 2\n", ["'seed'", "twice"]),
        ("like: smoke\nsft:\n  steps: 1\n  batch_size: 2\n  steps: 3\n", ["'steps'", "twice"]),
        ("like: smoke\nsft: {options: {a: 1, a: 2}}\n", ["'a'", "twice"]),
        ("like: smoke\n? [a]\n: 1\n", []),
        ("like: smoke\nsft: !!python/object:os.system {}\n", ["python/object"]),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    message = str(caught.value)
    assert all(word in message for word in ["mine.yaml" if words else "", *words]) and "\n" not in message, message


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("like: smoke # ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml cannot be read"):
        load_config(path)


BOMB = b"a0: &a0 [1]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfel\x00", ["UTF-8"]),
        (b"like: smoke\n# \x00", ["'\\x00'"]),
        (b"like: smoke\nsft: " + b"[" * 5000, ["nested"]),
        (b"like: smoke\nsft: {options: &a {b: *a}}", ["holds itself"]),
        (b"like: smoke\n" + BOMB, ["more than"]),
        (b"like: smoke\nseed: 2024-99-99", ["mine.yaml"]),
        (b"like: smoke\nseed: !!int x", ["mine.yaml"]),
        (b"like: smoke\n1: 2", ["keys should be strings"]),
        (b"like: smoke\nsft: {1: 2}", ["keys should be strings"]),
        (b"like: [smoke]", ["like = ['smoke']"]),
        (b"like: \"\\0.yaml\"", ["cannot be a path"]),
        (b"like: smoke\nmodel: {source: \"~nobody-at-all/x\"}", ["cannot be a path"]),
        (b"like: smoke\nsft: {step: 3}", ["mine.yaml: unknown setting sft.step"]),
        (b"like: smoke\nrl: {kl: .inf}", ["mine.yaml: rl.kl = inf"]),
    ],
)  # fmt: skip
def test_bytes_that_are_no_configuration_are_one_line_that_names_the_file(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    message = str(caught.value)
    assert all(word in message for word in ["mine.yaml", *words]) and "\n" not in message and len(message) < 1000, (
        message
    )


@pytest.mark.parametrize("name", ["", "..", "../../evil", "a\0b", "a/b", "x" * 400])
def test_a_preset_s_name_can_be_a_folder_s(name):
    with pytest.raises(ValueError, match=r"preset = .*cannot be a name"):
        load_config("smoke", {"preset": name})


def test_a_setting_that_a_chain_of_files_lacks_is_told_with_where_the_chain_ends(tmp_path):
    (tmp_path / "other.yaml").write_text("n_seeds: 2\n")
    (tmp_path / "mine.yaml").write_text("like: other.yaml\nseed: 1\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: the setting \w+ is missing, and \S+other\.yaml has no `like`"):
        load_config(tmp_path / "mine.yaml")


def test_the_file_of_a_chain_that_is_wrong_is_the_one_that_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("like: smoke\nsft: {batch_size: no}\n")
    (tmp_path / "b.yaml").write_text("like: a.yaml\nrl: {clip: 0.3}\n")
    with pytest.raises(ValueError, match=r"a\.yaml: sft\.batch_size"):
        load_config(tmp_path / "b.yaml")
    (tmp_path / "a.yaml").write_text("\ufefflike: smoke\r\nsft: {batch_size: 8}\r\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^rl\.clip"):
        load_config(tmp_path / "b.yaml", {"rl.clip": -1})
    assert load_config(tmp_path / "b.yaml").sft.batch_size == 8


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nope'.*smoke.*tiny"):
        load_config("nope")


def test_a_notebook_s_values_under_a_new_name():
    config = config_from({"preset": "mine", "like": "smoke", "sft": {"batch_size": 8}, "seed": None})
    assert (config.preset, config.sft.batch_size, config.sft.steps) == ("mine", 8, 24)
    with pytest.raises(ValueError, match="'mine'"):
        config_from({"preset": "mine"})
    with pytest.raises(ValueError, match="sede"):
        config_from({"preset": "smoke", "sede": 4})


def test_rl_plays_as_many_attempts_as_evaluation_if_not_said_otherwise():
    assert load_config("smoke", {"eval.attempts": 3}).rl.attempts == 3
    assert load_config("smoke", {"eval.attempts": 3, "rl.attempts": 1}).rl.attempts == 1
    assert load_config("smoke", {"eval.attempts": 3, "rl.attempts": None}).rl.attempts == 3


def test_folders_keep_different_runs_apart(tmp_path):
    plain = load_config("smoke")
    assert load_config("smoke", {"seed": 3}).folder().name == "smoke-seed3"
    other = load_config("smoke", {"sft.learning_rate": 2e-3}).folder()
    assert other != plain.folder() and other.name.startswith("smoke-")
    assert load_config("smoke", {"sft.learning_rate": 2e-3, "seed": 3}).folder() != other
    assert load_config("smoke", {"machine.jobs": 1, "machine.eval_batch_size": 7}).folder() == plain.folder()
    assert load_config("smoke", {"out": str(tmp_path)}).folder() == tmp_path


def test_what_decides_results_leaves_out_the_machine_and_the_lists_of_jobs():
    one = load_config("smoke")
    same = {"machine.micro_batch": 2, "rl.baselines": ["averaging"], "surgery.shares": [0.5], "rl.starts": [12]}
    assert one.results_of(*SECTIONS[:-1]) == one.changed(same).results_of(*SECTIONS[:-1])
    assert one.results_of("rl") != one.changed({"rl.kl": 0.1}).results_of("rl")


def test_the_table_of_a_section_says_what_each_setting_is():
    table = load_config("smoke").table("sft", "rl")
    assert table.loc["sft.learning_rate", "value"] == "0.001" and table["what it is"].str.len().min() > 3
    for section in SECTIONS:
        assert all(f.description for f in Config.model_fields[section].annotation.model_fields.values())


values = (
    st.none()
    | st.booleans()
    | st.integers(-5, 700)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(0, 30), max_size=3)
)
names = st.sampled_from([f"{s}.{n}" for s in SECTIONS for n in Config.model_fields[s].annotation.model_fields])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names.filter(lambda n: "options" not in n and "lora" not in n), values, max_size=3))
def test_any_change_is_accepted_or_refused_in_one_line(changes):
    try:
        config = load_config("smoke", changes)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        for name, value in changes.items():
            section, _, setting = name.partition(".")
            if value is not None:
                assert getattr(getattr(config, section), setting) == value
