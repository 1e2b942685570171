"""The structure: imports go one way, lazy ones and those named by text included."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import oodlib

ROOT = Path(oodlib.__file__).parent
# Each may import those before it, and nobody imports `scale`, which is named by text where it is wanted.
ORDER = [
    "io", "registry", "options", "provenance", "notebook", "tasks", "settings", "config", "models", "results", "run",
    "merge", "stages",
    "inference", "spectral", "training", "analysis", "plots", "widgets", "lecture", "report", "scale", "cli",
]  # fmt: skip


def imports():
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    graph = defaultdict(set)
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "oodlib":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= {name if name in files else node.module for name in names}
    return {module: {t for t in targets if t != module} for module, targets in graph.items()}


def part(module):
    return module.partition(".")[2].split(".")[0]


def test_no_module_imports_itself_in_a_circle():
    try:
        list(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {target}"
        for module, targets in imports().items()
        for target in targets
        if part(module) and part(target) != part(module)
        if ORDER.index(part(target)) > ORDER.index(part(module)) or part(target) == "scale" != part(module) != "cli"
    ]
    assert wrong == []


def test_everything_has_its_place():
    assert {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} <= {*ORDER, "__init__"}
