"""A user's own data: files and checkers are read as they are meant, faults are named, and every stage runs on them."""

import json
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from oodlib.config import PARAMS, load_config
from oodlib.tasks import Verdict, base, get_task
from oodlib.tasks.jsonl import exact, number

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 3?"}]
EXAMPLE = load_config("custom").task.options
NAMES = count()  # a module is imported once a process


def line(prompt="2 + 3 =\n", completion="5", answer=5, **others):
    return json.dumps({"prompt": prompt, "completion": completion, "answer": answer, **others})


@pytest.fixture
def judge(tmp_path, monkeypatch, data):
    """A task whose checker has this body."""

    def make(body):
        module = f"my_checker_{next(NAMES)}"
        (tmp_path / f"{module}.py").write_text(
            f"from oodlib.tasks import Verdict\ndef check(answer, text):\n    {body}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        task = get_task("jsonl", data(checker=f"{module}:check"))
        return lambda text: task.verify(task.split("id")[0], text)

    return make


# ---- files ---------------------------------------------------------------------------------------------


def test_splits_are_the_lines_and_training_deals_from_train(data):
    train = [line(f"{n} =\n", str(n), n, label=str(n)) for n in range(20)]
    task = get_task("jsonl", data(line(label="a"), line(), train=train))
    assert [task.label(p) for p in task.split("id")] == ["a", "line 2"]
    assert len({*task.split("id"), *task.split("ood")}) == 2, "problems are hashable"
    dealt = task.sample(np.random.default_rng(0), "id", 200)
    assert {task.label(p) for p in dealt} == {str(n) for n in range(20)}
    assert dealt == task.sample(np.random.default_rng(0), "id", 200)
    assert {task.label(p) for p in task.sample(np.random.default_rng(0), "ood", 50)} == {"a", "line 2"}
    with pytest.raises(ValueError, match=r"'train'.*id, ood"):
        task.split("train")


def test_any_other_option_is_a_further_split(data):
    files = data(ood=[line(label="far")])
    task = get_task("jsonl", {**files, "longer": files["ood"], "other_words": files["id"]})
    assert task.splits.names == ("id", "longer", "other_words", "ood")
    assert [split.label for split in task.splits] == ["ID", "longer", "other words", "OOD"]
    assert len({split.colour for split in task.splits}) == 4
    assert [task.label(p) for p in task.split("longer")] == ["far"]
    assert {task.label(p) for p in task.sample(np.random.default_rng(0), "other_words", 9)} == {"line 1"}


def test_without_train_one_learns_from_id(data):
    task = get_task("jsonl", data(ood=[line(label="far")]))
    assert {task.label(p) for p in task.sample(np.random.default_rng(0), "id", 9)} == {"line 1"}


def test_prompts_and_answers_in_both_styles(data):
    task = get_task("jsonl", data(line(), line(CHAT)))
    text, chat = task.split("id")
    assert task.prompt(text, "compact") == "2 + 3 =\n" and task.answer(text, "compact", None) == "5"
    assert task.prompt(text, "chat") == [{"role": "user", "content": "2 + 3 =\n"}]
    assert task.prompt(chat, "chat") == CHAT
    assert task.answer(chat, "chat", None) == [{"role": "assistant", "content": "5"}]
    with pytest.raises(ValueError, match=r"'line 2'.*prompt_style chat"):
        task.prompt(chat, "compact")
    wrong = task.verify(text, "4")
    assert task.feedback(text, wrong, "chat")[0]["content"] in task.feedback(text, wrong, "compact")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{'prompt': 1}"], ["id.jsonl, line 1", "invalid JSON"]),
        ([line(), "[1, 2]"], ["line 2", "object"]),
        ([line(), "", '{"prompt": "a", "answer": 1}'], ["line 3", "completion", "required"]),
        ([line(completion=5)], ["line 1", "completion", "5"]),
        ([line(completion=" ")], ["line 1", "completion"]),
        ([line(prompt=[])], ["line 1", "prompt", "messages"]),
        ([line(prompt=[{"role": "user"}])], ["line 1", "prompt", "role and content"]),
        ([line(label=3)], ["line 1", "label", "3"]),
        ([line(label="a"), line(), line(label="a")], ["line 3", "label 'a'", "line 1"]),
        ([line(answer="five")], ["line 1", "No number"]),
        (["", " "], ["id.jsonl", "empty"]),
        (['{"prompt": "a", "completion": "5", "answer": 5, "answer": 6}'], ["line 1", "'answer'", "twice"]),
        (['{"prompt": "a", "completion": "5", "answer": {"b": 1, "b": 2}}'], ["line 1", "'b'", "twice"]),
        (["[" * 5000], ["line 1", "JSON"]),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_line(data, lines, words):
    with pytest.raises(ValueError) as caught:
        load_config("smoke", {"task.name": "jsonl", "task.options": data(id=lines)})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "nowhere.jsonl"}, ["nowhere.jsonl", "No such file"]),
        ({"harder": "a.jsonl"}, ["a.jsonl", "No such file"]),
        ({"2nd": "a.jsonl"}, ["'2nd'", "a split's name"]),
        ({"ood": None}, ["lack ood"]),
        ({"checker": "magic"}, ["'magic'", "exact, number", "my_package.my_module:function"]),
        ({"checker": "no_such_package:check"}, ["'no_such_package:check'", "cannot be imported", "PYTHONPATH"]),
        ({"checker": "json:no_such"}, ["'json:no_such'", "cannot be imported"]),
        ({"checker": "json:encoder"}, ["'json:encoder'", "no function"]),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(data, changes, words):
    options = {k: v for k, v in {**data(), **changes}.items() if v is not None}
    with pytest.raises(ValueError) as caught:
        load_config("smoke", {"task.name": "jsonl", "task.options": options})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1", "cp1251"])
def test_a_file_in_another_encoding_is_named(data, encoding):
    options = data()
    Path(options["id"]).write_bytes(
        line("é Ж".encode(encoding, "ignore").decode(encoding), label="é").encode(encoding, "replace") + b"\xe9"
    )
    with pytest.raises(ValueError, match=r"id\.jsonl cannot be read: it is not UTF-8 text"):
        get_task("jsonl", options)


def test_a_folder_in_the_place_of_a_file_is_named_and_a_byte_order_mark_is_nothing(data, tmp_path):
    options = data()
    Path(options["id"]).write_text("\ufeff" + line(), encoding="utf-8")
    assert get_task("jsonl", options).split("id")[0].completion == "5"
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        get_task("jsonl", {**options, "ood": str(tmp_path)})


def test_the_card_game_takes_no_options(data):
    with pytest.raises(ValueError, match=r"task.options = .*'general_points' takes none"):
        load_config("smoke", {"task.options": data()})
    assert get_task("general_points") is get_task("general_points", {})


# ---- checkers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        (5, "2 + 3 is 5", True),
        (5, "2 + 3 = 5.", True),
        (5, "5 or 6", False),
        (5, "5.0", True),
        (-5, "x = -5", True),
        (24, "the range 10-24", True),
        ("$1,234.50", "1234.5 dollars", True),
        (3, "1,2,3", True),
        (0.5, "it is .5", True),
        (2000, "2e3", True),
        (0.1, "0.10", True),
        (9007199254740993, "9007199254740992", False),
        (5, "5 (version 1.2.3)", False),
        (10, "1..10", True),
        (50, "50%", True),
        (0.5, "50%", False),
        (14, "3,14", True),
        (10, "10² cm²", True),
        (5, "½ of ten is 5", True),
        ("1/2", "0.5", True),
        ("1/2", "2", False),
        (2, "1/2", False),
        (-0.75, "x = -3/4", True),
        (1, "333333333333333333333/333333333333333333333", True),
        (2024, "on 3/4/2024", True),
        (0, "1e1000", False),
        ("1e1000", "10e999", True),
        (5, "x = 1e1235", False),
        (0.75, "3⁄4", True),
        (-0.75, "−3∕4", True),
        (3, "[2]-3", True),
        (3, r"\frac{1}{2}-3", True),
        (3, "（2）-3", True),
        (2000, "２ｅ３", True),
        (0.002, "２ｅ-３", True),
        ("-1/2", "1/-2", True),
        (-2, "1/-2", False),
        ("1/3", "-1/-3", True),
        (-3, "_-3_", True),
        (-3, "**-3**", True),
        (3, "「2」-3", True),
        (3, "⟨2⟩-3", True),
        (-3, "−\ufe0e3", True),
        (-3, "-\u20603", True),
        (12, "1\u200b2", True),
        (3, "—3", True),
    ],
)
def test_number_takes_the_last_number(answer, text, right):
    assert number(answer, text) is right


@pytest.mark.parametrize("minus", "-−‐‑‒–﹣－˗⁻₋➖")
def test_every_minus_sign_is_one_right_before_a_number_and_a_dash_elsewhere(minus):
    assert number(-3, f"x = {minus}3") and number(-3, f"{minus}3") and number(f"{minus}3", "-3")
    assert (
        number(24, f"10{minus}24") and number(3, f"a{minus}3") and number(3, f"(2){minus}3") and number(3, f"{minus} 3")
    )


@pytest.mark.parametrize("mark", [",", "，", "٬", "'", "’", "_", "\u00a0", "\u2007", "\u2009", "\u202f"])
def test_groups_of_thousands_are_set_off_by_one_sign(mark):
    assert number(1234567.5, f"it is 1{mark}234{mark}567.5") and number(-1234, f"-1{mark}234")
    assert number(5678, f"1{mark}5678") and number(12, f"1{mark}12")
    assert mark == "," or not number(1234567, f"1{mark}234;567")


def test_a_plain_space_parts_two_numbers():
    assert number(123, "in 2024 123") and number(234, "1 234")


@pytest.mark.parametrize("zero", "0٠۰०０𝟎")
def test_digits_of_any_script_count(zero):
    digits = [chr(ord(zero) + n) for n in range(10)]
    assert number(1207, digits[1] + digits[2] + digits[0] + digits[7]) and number(0.5, f"{digits[0]}．{digits[5]}")


def test_an_exponent_that_is_out_of_reach_is_no_number():
    for text in ("1e10000", "1e-99999999999999999999999", "1e" + "9" * 5000):
        with pytest.raises(ValueError, match="exponent"):
            number(0, text)
    assert number(5, "5e0000000")


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("3.14159265358979323846", "3.14159265358979323846", True),
        ("9007199254740993.0", "9007199254740993", True),
        ("9007199254740993.0", "9007199254740992", False),
        ("1e-400", "0", False),
    ],
)
def test_an_answer_is_the_number_that_the_file_has(data, answer, text, right):
    row = f'{{"prompt": "p", "completion": "c", "answer": {answer}}}\n'
    options = data()
    Path(options["id"]).write_text(row)
    task = get_task("jsonl", {**options, "checker": "number"})
    assert (task.verify(task.split("id")[0], text).outcome == "correct") is right


def test_number_takes_no_list_as_an_answer(data):
    options = {**data(id=[line(answer=[12345678901234567890.5])]), "checker": "number"}
    with pytest.raises(ValueError, match=r"id\.jsonl, line 1: answer: a number"):
        get_task("jsonl", options)


@pytest.mark.parametrize("text", ["", "five", "²", "½", "Ⅷ", "①", "五", "−", "1/0", "\ud800", "."])
def test_what_holds_no_number_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"[Nn]umber"):
        number(5, text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["1", "1,", "1,234,", "/1", "1/", "-", "−", ".", "1.", "٣", "1e", "e9", "\u2009123", "1'234/", "1/-", "\u200b"],
    ids=ascii,
)
def test_number_takes_at_most_a_millisecond_a_kilobyte(text):
    text *= 300_000 // len(text)
    start = time.process_time()
    with suppress(ValueError):
        number(7, text)
    assert time.process_time() - start < len(text.encode()) / 1e6


@pytest.mark.parametrize("answer", ["NaN", "-Infinity", "[1e999]"])
def test_an_answer_is_a_number_that_there_is(data, answer):
    options = {**data(id=[f'{{"prompt": "a", "completion": "5", "answer": {answer}}}']), "checker": "exact"}
    with pytest.raises(ValueError, match=r"line 1: answer: .* holds no number"):
        get_task("jsonl", options)


def test_exact_is_equality_of_text_without_white_space_around():
    assert exact("K A", " K A\n") and not exact("K A", "K  A") and exact(5, "5") and exact([1, "é"], '[1, "é"]')


@pytest.mark.parametrize(
    ("body", "outcome", "reward"),
    [
        ("return text == '5'", "correct", 5.0),
        ("return text != '5'", "wrong_value", -1.0),
        ("return 0.5", "wrong_value", 2.0),
        ("return 1.0", "correct", 5.0),
        ("raise ValueError('no such shape')", "malformed", -3.0),
        ("return Verdict('illegal', -2.0, 'no')", "illegal", -2.0),
    ],
)
def test_what_a_checker_says_becomes_outcome_and_reward(judge, body, outcome, reward):
    verdict = judge(body)("5")
    assert (verdict.outcome, verdict.reward) == (outcome, reward) and verdict.message


def test_an_empty_text_is_malformed_and_no_checker_is_asked(judge):
    assert judge("return True")(" \n") == Verdict("malformed", -3.0, "No answer was found.")


def test_whatever_a_checker_raises_is_told_with_its_name_and_the_line(judge):
    with pytest.raises(RuntimeError, match=r"my_checker_.*check.*'line 1': KeyError: 'x'"):
        judge("return {}['x']")("5")


def test_a_checker_that_would_end_the_program_is_told_too(judge):
    with pytest.raises(RuntimeError, match=r"my_checker_.*'line 1': SystemExit"):
        judge("raise SystemExit(0)")("5")


@pytest.mark.parametrize(
    "body",
    [
        "return 7",
        "return None",
        "return float('nan')",
        "return 1j",
        "return __import__('numpy').timedelta64(1, 's')",
        "return Verdict('good', 5.0, '')",
        "return Verdict('correct', float('nan'), 'x')",
        "return Verdict('correct', '5', 'x')",
        "return Verdict('correct', 5.0, None)",
    ],
)
def test_a_checker_that_says_something_else_is_an_error(judge, body):
    with pytest.raises(ValueError, match="the checker gave"):
        judge(body)("5")


# ---- presets -------------------------------------------------------------------------------------------


def test_the_key_knows_data_and_checker_by_their_content(data, judge, tmp_path):
    def parameters(**splits):
        base._get_task.cache_clear()  # as in a new process
        return load_config("smoke", {"task.name": "jsonl", "task.options": data(**splits)}).results_of("task")["task"]

    first = parameters()
    assert first == parameters() != parameters(ood=[line(answer=6)])
    assert first["options"]["id"].startswith("sha256:") and str(tmp_path) not in json.dumps(first)
    judge("return True")
    (code,) = tmp_path.glob("my_checker_*.py")
    own = parameters(checker=f"{code.stem}:check")["options"]
    assert own["checker"] == f"{code.stem}:check" and own["checker_code"].startswith("sha256:")


def test_paths_in_a_file_are_relative_to_it_and_others_to_the_working_directory(data, tmp_path, monkeypatch):
    data()
    mine = tmp_path / "mine.yaml"
    mine.write_text("like: smoke\ntask: {name: jsonl, options: {id: id.jsonl, ood: ./ood.jsonl}}\n")
    raw = {"id": "id.jsonl", "ood": "ood.jsonl"}
    full = {k: str(tmp_path / v) for k, v in raw.items()}
    assert load_config(mine).task.options == full
    assert load_config(mine, {"task.options": raw}).task.options == full, "as papermill -f gives them"
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.yaml").task.options == full
    assert load_config("smoke", {"task.name": "jsonl", "task.options": raw}).task.options == full
    (tmp_path / "models" / "mine").mkdir(parents=True)
    mine.write_text("like: smoke\nmodel: {source: models/mine}\n")
    monkeypatch.chdir("/")
    assert load_config(mine).model.source == str(tmp_path / "models" / "mine")


def test_the_example_s_completions_are_right_and_nothing_is_in_two_files():
    config = load_config("custom")
    task = get_task(config.task.name, config.task.options)
    rows = {name: (PARAMS / "custom" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "id", "ood")}
    assert len({r for lines in rows.values() for r in lines}) == sum(map(len, rows.values()))
    for split in ("id", "ood"):
        for problem in task.split(split):
            assert task.verify(problem, task.answer(problem, "compact", None)).outcome == "correct"
