"""README and docs/: what they name exists, what they link to is there, what they show as an example runs."""

import json
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml

from oodlib.analysis.claims import points
from oodlib.cli import app
from oodlib.config import CHECKOUT, Config, config_from, config_names, load_config, read_value, read_yaml
from oodlib.registry import BASELINES, MITIGATIONS, TASKS
from oodlib.results import Results
from oodlib.tasks import OUTCOMES, get_task

PAGES = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*CHECKOUT.glob("docs/*.md"), CHECKOUT / "notebooks/README.md", CHECKOUT / "params/README.md"]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").rglob("*.ipynb"))
COMMANDS = typer.main.get_command(app).commands
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.S)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ENDINGS = ("parquet", "csv", "py", "md", "yaml")  # rotation.parquet is a file
OLD = r"campaign|remed(?:y|ies)|regimes?|rivals?"  # words of version 0.1; CHANGELOG and file names have them


def text_of(path):
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return path.read_text(encoding="utf-8")


def blocks(path, language):
    return [body for name, body in BLOCK.findall(text_of(path)) if name == language]


def commands(text, program):
    """The words of every call of a program in a text's code, up to a comment, a pipe or the line's end."""
    for code in CODE.findall(text):
        for line in code.replace("\\\n", " ").strip("`").splitlines():
            for call in re.findall(rf"(?:^|\s){program} ([^#|]+)", line):
                yield shlex.split(call.replace("…", " "))


def every_command(program):
    pages = [path for path in PAGES if path.name != "CHANGELOG.md"]  # which names old commands too
    return [(path, words) for path in pages for words in commands(text_of(path), program) if words]


def anchors(path):
    """What a link may name behind #: the headings of a page, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text_of(path)), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_relative_link_resolves(path):
    for link in LINK.findall(CODE.sub("", text_of(path))):
        if re.match(r"https?:|attachment:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_every_command_and_option_exists():
    calls = [(path, words) for path, words in every_command("oodlib") if re.fullmatch("[a-z]+", words[0])]
    assert {words[0] for _, words in calls} == set(COMMANDS)  # none is missing from the pages either
    for path, (name, *words) in calls:
        known = {option for p in COMMANDS[name].params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known, (path.name, name, words)


def test_every_setting_exists():
    sections = {name: f.annotation for name, f in Config.model_fields.items() if hasattr(f.annotation, "model_fields")}
    for path in PAGES:
        prose = re.sub(r"```python.*?```", "", text_of(path), flags=re.S)
        for section, name in re.findall(rf"\b({'|'.join(sections)})\.([a-z_]+)\b", prose):
            assert name in sections[section].model_fields or name in ENDINGS, (path.name, section, name)


def test_every_change_on_the_command_line_is_a_valid_one():
    changes = [words[i + 1] for _, words in every_command("oodlib") for i, word in enumerate(words) if word == "--set"]
    assert len(changes) > 4
    for name, _, value in (change.partition("=") for change in changes):
        load_config("tiny", {name: read_value(value)})


def test_every_papermill_call_gives_a_valid_configuration():
    calls = [words for _, words in every_command("papermill")]
    assert len(calls) > 3
    for source, _, *words in calls:
        assert (CHECKOUT / source).exists()
        values, i = {}, 0
        while i < len(words):
            if words[i] == "-f":
                values.update(yaml.safe_load((CHECKOUT / words[i + 1]).read_text(encoding="utf-8")))
            elif words[i] == "-y":
                values.update(yaml.safe_load(words[i + 1]))
            else:
                assert words[i] == "-p"
                values[words[i + 1]] = read_value(words[i + 2])
                i += 1
            i += 2
        config_from(values)


def test_every_example_of_a_configuration_loads(tmp_path, examples):
    shutil.copytree(CHECKOUT / "params/custom", tmp_path / "custom")
    shown = [block for path in PAGES for block in blocks(path, "yaml")]
    assert len(shown) > 4
    for block in shown:
        file = tmp_path / "mine.yaml"
        file.write_text(block, encoding="utf-8")
        assert load_config(file).preset == "mine"


def test_every_configuration_is_described():
    table = text_of(CHECKOUT / "docs/configuration.md").split("## Change one setting")[0]
    described = re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\|([^|]+)\|", table, re.M)))
    assert sorted(described) == config_names()


def test_every_import_in_an_example_works(examples):
    for path in PAGES:
        for module, names in re.findall(
            r"^\s*from (oodlib[\w.]*) import (.+)$", "\n".join(blocks(path, "python")), re.M
        ):
            for name in names.split(", "):
                assert hasattr(import_module(module), name) or import_module(f"{module}.{name}"), (path.name, name)


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_the_words_are_those_of_the_code(path):
    prose = re.sub(r"\S*[/_]\S*", "", text_of(path))
    assert not re.findall(rf"\b(?:{OLD})\b", prose, re.I)


def test_the_examples_on_checkpoints_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(CHECKOUT / "docs/checkpoints.md", "python"):
        name = re.match(r"# (\w+)\.py\n", block)[1]
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
        import_module(name)
        del sys.modules[name]
    assert capsys.readouterr().out  # the angles


# ---- docs/extending.md: the examples as a package ----------------------------------------------------


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The package `my_study`, from the page's code blocks, each of which begins with its file's name."""
    for block in blocks(CHECKOUT / "docs/extending.md", "python"):
        file = tmp_path / re.match(r"# (my_study/\w+\.py)\n", block)[1]
        file.parent.mkdir(exist_ok=True)
        file.write_text(block, encoding="utf-8")
    (tmp_path / "my_study/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_study"]:
        del sys.modules[name]


@pytest.mark.parametrize("style", ["compact", "chat"])
def test_the_example_of_a_task_deals_and_judges(examples, style):
    task, rng = get_task("my_study.sums:TASK"), np.random.default_rng(0)
    assert task.splits.trained.changes == () and task.splits.changing("numbers") in task.splits.others
    for split in task.splits.names:
        problems = task.split(split)
        assert len({task.label(p) for p in problems}) == len(problems)
        for problem in task.sample(rng, split, 5):
            assert problem in problems and task.prompt(problem, style)
            answer = task.answer(problem, style, rng)
            assert task.verify(problem, answer if style == "compact" else answer[0]["content"]).outcome == "correct"
    verdicts = [task.verify((1, 2), text) for text in ("3", "4", "three", "")]
    assert [v.outcome for v in verdicts] == ["correct", "wrong_value", "malformed", "malformed"]
    assert {v.outcome for v in verdicts} <= set(OUTCOMES) and task.feedback((1, 2), verdicts[1], style)


def test_the_example_of_a_baseline_pays_for_correct_answers_alone(examples):
    baseline = BASELINES.get("my_study.binary_reward:BASELINE")
    assert baseline.information == "variant" and not baseline.counts and baseline.make_trainer
    task, binary = get_task("my_study.sums:TASK"), import_module("my_study.binary_reward").binary
    verdicts = [[task.verify((1, 2), text) for text in texts] for texts in (["x", "3"], ["4"])]
    assert binary(verdicts, np.random.default_rng(0)) == [[0.0, 1.0], [0.0]]


def test_the_example_of_a_mitigation_is_the_weighted_squared_distance(examples):
    model = torch.nn.Linear(2, 2)
    config = SimpleNamespace(sft=SimpleNamespace(mitigation_weight=0.5))
    penalty = MITIGATIONS.get("my_study.l2_to_base:MITIGATION").penalty(model, config)
    assert penalty({}).item() == 0
    with torch.no_grad():
        model.bias += 3
    assert penalty({}).item() == pytest.approx(0.5 * 2 * 9)


@pytest.mark.parametrize("test", ["paper", "baselines"])
def test_the_example_of_a_claim_is_judged_on_the_reference_run(examples, test):
    claim = import_module("my_study.judge").judge(CHECKOUT / "outputs/tiny-seeds", test)
    results = Results(CHECKOUT / "outputs/tiny-seeds")
    trained, headline = results.splits.trained.name, results.splits.headline.name
    rates = results.table("measurements", "sft").pivot_table(
        index=["seed", "step"], columns=["metric", "split"], values="value", observed=True
    )
    growth = []
    for seed in rates.index.unique("seed"):
        of_seed = rates.loc[seed]
        wrong = of_seed["wrong_numbers"].iloc[-1] - of_seed["wrong_numbers"].loc[of_seed["accuracy", headline].idxmax()]
        growth.append(wrong[headline] - (wrong[trained] if test == "baselines" else 0))
    assert (claim.claim, claim.test) == ("W1", test) and claim.estimate == pytest.approx(np.mean(growth), abs=1e-5)
    assert (claim.verdict == "supported") == (claim.ci_low > 0)


def test_the_example_s_configuration_names_all_three(examples):
    (examples / "my_study.yaml").write_text(blocks(CHECKOUT / "docs/extending.md", "yaml")[-1], encoding="utf-8")
    config = load_config(examples / "my_study.yaml")
    assert TASKS.get(config.task.name).name == "sums"
    assert BASELINES.get(config.rl.baselines[0]).label == "RL, binary reward"
    assert MITIGATIONS.get(config.sft.mitigation).label == "L2 to the base"


# ---- numbers in prose, held against what they come from ----------------------------------------------


def test_the_readme_shows_the_scorecard_of_the_reference_run():
    from oodlib.analysis import Evidence, claims
    from oodlib.analysis.plan import Plan
    from oodlib.analysis.sweep import Sweep

    sweep = Sweep(Plan("mitigations"), CHECKOUT / "outputs/mitigations")
    evidence = Evidence.of(Results(CHECKOUT / "outputs/tiny-seeds"), **sweep.evidence())
    shown = re.search(r"<!-- scorecard[^>]*-->\n(.*?)<!-- end of scorecard -->", text_of(PAGES[0]), re.S)[1]
    names = ("navigation-seeds", "smollm2-cpu")
    beside = {name: claims.scorecard(Evidence.of(Results(CHECKOUT / "outputs" / name))) for name in names}
    assert shown == claims.as_markdown(claims.scorecard(evidence), beside)


def test_the_page_on_navigation_shows_what_the_run_measured():
    from oodlib import lecture
    from oodlib.analysis import claims

    page, folder = text_of(CHECKOUT / "docs/navigation.md"), CHECKOUT / "outputs/navigation-seeds"
    run = Results(folder)
    for corner, row in lecture.forgotten(run.table("measurements", "sft"), run.splits)["accuracy"].iterrows():
        peak, end = row
        assert f"| {corner} | {peak:.0f} % | {end:.0f} % |" in page
    card = {(c.claim, c.test): c for c in claims.from_json((folder / "scorecard.json").read_text("utf-8"))}
    for key in [("C1", "paper"), ("C1", "baselines"), ("C4", "paper"), ("C4", "baselines"), ("C8", "baselines")]:
        assert claims.interval(card[key]) in page, key


def test_the_page_on_real_models_shows_what_the_run_measured():
    page = text_of(CHECKOUT / "docs/real_models.md")
    table = Results(CHECKOUT / "outputs/smollm2-cpu").table("measurements", "sft")
    value = {"2 to 9": range(2, 10), "1": [1], "11 to 13": range(11, 14)}
    head, _, *lines = re.search(r"<!-- sft table -->\n(.*?)<!-- end of sft table -->", page, re.S)[1].splitlines()
    steps = [int(cell) for cell in head.split("|")[3:-1]]
    assert len(lines) > 14
    for line in lines:
        what, seed, *shown = (cell.strip() for cell in line.split("|")[1:-1])
        metric = "old_numbers" if "SFT's" in what else "numbers_read"
        corner = {"ID": "id", "new numbers": "new_numbers", "new rule": "new_rule", "OOD": "ood"}.get(
            what.split(",")[0]
        )
        splits = [corner] if corner else [f"face_{v}" for v in value[what.removeprefix("the same value, ")]]
        rows = table[table["split"].isin(splits) & (table["metric"] == metric) & (table["seed"] == int(seed))]
        means = rows.groupby("step")["value"].mean()
        assert shown == [f"{100 * means[step]:.0f}" for step in steps], line


def test_the_page_on_real_models_shows_what_was_copied():
    page, found = text_of(CHECKOUT / "docs/real_models.md"), pd.read_csv(CHECKOUT / "outputs/smollm2-cpu/copying.csv")
    found = found[found["place"] == "last"]
    along, edited = found[found["put_back"].isna()], found[found["put_back"].notna()]
    few, tens, beyond = (along["stated"].between(*ends) for ends in ((2, 9), (11, 19), (20, 30)))
    rows = {
        step: [
            *along[few & at][["itself", "one", "ten"]].mean(),
            along.loc[tens & at, "itself"].mean(),
            *along[beyond & at][["itself", "one", "ten"]].mean(),
        ]
        for step in along["step"].unique()
        for at in [along["step"] == step]
    }
    for step, values in rows.items():
        assert f"| {step} | {' | '.join(f'{value:.2f}' for value in values)} |" in page, step
    for _, of_edit in edited.groupby("put_back"):
        odd = of_edit[of_edit["stated"] < 10][["itself", "one", "ten"]].mean()
        ten = of_edit.loc[of_edit["stated"] == 10, "itself"]
        assert f"| {' | '.join(f'{value:.2f}' for value in (*odd, *ten))} |" in page


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (41, 38, "-1.3 [-8.1, +5.5] points"),
        (46, 40, "-2.6 [-9.6, +4.4] points"),
        (40, 46, "+2.6 [-4.4, +9.6]"),
        (41, 16.2, "10.6 [4.7, 16.5] points"),
        (16.2, 38, "9.3 [3.6, 15.1]"),
    ],
)
def test_the_guide_s_intervals_are_those_of_the_paper_s_hands(before, after, shown):
    """Hands right of 234, before and after; 6.92 % of the paper's level are 16.2."""
    p, q = before / 234, after / 234
    half = 1.96 * np.sqrt(p * (1 - p) / 234 + q * (1 - q) / 234)
    value, low, high = 100 * (q - p), 100 * (q - p - half), 100 * (q - p + half)
    if "+" not in shown and value < 0:  # told as a fall
        value, low, high = -value, -high, -low
    numbers = [float(n) for n in re.findall(r"[+-]?\d+\.\d", shown)]
    assert shown in text_of(CHECKOUT / "docs/guide.md")
    assert numbers == pytest.approx([value, low, high], abs=0.06)


def rows_of(page: str, heading: str) -> dict[str, str]:
    """The lines of the tables under a heading, by their first cell."""
    found = text_of(CHECKOUT / page).split(heading)[1].split("\n## ")[0]
    lines = (line.strip("| ").split(" | ") for line in found.splitlines() if line.startswith("| "))
    return {first: " | ".join(others) for first, *others in lines}


MINIMUM = "first minimum of the ID loss"


def test_the_report_on_mitigations_has_the_tables_of_the_sweep():
    """Those of notebook 06: each line with its first cells stands in the page."""
    from oodlib.analysis import mitigations, predictors, same_start, selection
    from oodlib.analysis.plan import Plan
    from oodlib.analysis.sweep import Sweep

    page, sweep = text_of(CHECKOUT / "docs/mitigations.md"), Sweep(Plan("mitigations"))
    splits, evidence, rows = sweep.splits, sweep.evidence(), sweep.rows("mitigations")
    escaped = "\\|"  # as in a table
    for table in (
        mitigations.corner_table(evidence["mitigations"], "plain SFT", splits, sweep.step_times()),
        predictors.strength_table(predictors.strengths(evidence["drift"], splits), splits),
        same_start.table(evidence["same_start"]),
        selection.rule_table(selection.regrets(selection.paths(rows, splits))),
    ):
        for first, *others in table.itertuples():
            assert f"| {' | '.join((first.replace('|', escaped), *others))} |" in page, first
    strengths = {m: name.removeprefix(f"{m}, ") for name, m in sweep.chosen().items() if m != name}
    assert f"Chosen: {'; '.join(f'{m} {value}' for m, value in strengths.items())}." in " ".join(page.split())


def test_the_sweep_s_report_has_the_numbers_of_what_heals():
    """Each line of a table in "Found" that begins with a baseline's label tells what RL gains more than it, on OOD."""
    from oodlib.analysis import healing
    from oodlib.analysis.sweep import Sweep

    rows = rows_of("docs/sweep.md", "## Found")
    labels = {label: name for name in BASELINES.names() if (label := BASELINES.get(name).label) in rows}
    assert labels
    sweep = Sweep.open()
    table, splits = sweep.rows("confirm"), sweep.splits
    for label, name in labels.items():
        assert points(healing.compare(table, splits, name, splits.headline).difference) in rows[label], label


def test_the_page_on_checkpoints_says_what_the_rules_of_select_lose():
    from oodlib.analysis.selection import measured_here

    known = {name: {rule: round(100 * e.value) for rule, e in rules.items()} for name, rules in measured_here().items()}
    text = " ".join(text_of(CHECKOUT / "docs/checkpoints.md").split())
    dense, sparse = known["tiny-seeds"], known["sweep"]
    assert {dense[rule] for rule in ("last", "lowest ID loss", "highest ID accuracy")} == {50}
    assert f"each lose about 50 points, and the first local minimum of the ID loss loses {dense[MINIMUM]}." in text
    early, last = sparse["10% of the steps"], sparse["last"]
    assert f"that rule loses {sparse[MINIMUM]}, the checkpoint at 10 % of the steps {early}" in text
    assert f"and the last checkpoint {last}." in text
    fewer = known["mitigations"]
    assert f"the last checkpoint loses {fewer['last']}, and the first minimum {fewer[MINIMUM]}." in text


# ---- files about the software ------------------------------------------------------------------------


def test_the_citation_has_what_the_format_asks_for_and_the_version_of_the_package():
    citation = read_yaml(CHECKOUT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "abstract", "license", "version"} <= set(citation)
    assert citation["references"][0]["url"].endswith("2509.12235")
    version = re.search(r'^version = "(.+)"', (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert citation["version"] == version and f"## [{version}]" in text_of(CHECKOUT / "CHANGELOG.md")


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_named():
    job = read_yaml(CHECKOUT / ".github/workflows/ci.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert {"run": ".ci/run"} in job["steps"] and Path(CHECKOUT / ".ci/run").exists()


def test_the_readme_is_short():
    readme = text_of(PAGES[0])
    prose = re.sub(r"<!-- scorecard.*<!-- end of scorecard -->", "", readme, flags=re.S)
    assert len(readme.splitlines()) <= 90 and len(prose.split()) <= 800
