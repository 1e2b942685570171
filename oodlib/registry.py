"""Things that a configuration names, one file each: found by their file, or as module:object from anywhere.

To add one, write a file in the package's folder that assigns it to the registry's name (`TASK`, `BASELINE`, …). There
is no list elsewhere. The names are read off the folder, so that nothing is imported to check one.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Registry:
    """The things of one sort in a package: `registry.get("averaging")`, `registry.get("my_package.mine:THING")`."""

    def __init__(self, sort: str, package: str, attribute: str):
        self.sort, self.package, self.attribute = sort, package, attribute

    def names(self) -> list[str]:
        """The files (or folders with an __init__.py) of the package that hold one."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        files = [*folder.glob("[!_]*.py"), *(p.parent for p in folder.glob("[!_]*/__init__.py"))]
        marked = (p for p in files if re.search(rf"^{self.attribute}\b", _text(p), re.M))
        return sorted(p.stem for p in marked)

    def check(self, name: str, setting: str = "", *besides: str) -> str:
        """`name`, if there is such a thing by its looks; else a ValueError that names what is allowed."""
        known = [*besides, *self.names()]
        if name in known or is_path(name):
            return name
        near = get_close_matches(name, known, 1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        place = f"{setting} = {name!r}: unknown {self.sort};" if setting else f"unknown {self.sort} {name!r};"
        raise ValueError(f"{place}{hint} allowed are {', '.join(known)}, or module:object")

    def get(self, name: str) -> Any:
        """The thing itself. ValueError for an unknown one, or one that cannot be imported."""
        self.check(name)
        return import_object(name if is_path(name) else f"{self.package}.{name}:{self.attribute}", self.sort)


def is_path(name: str) -> bool:
    """Whether a name is written as module:object."""
    return bool(_PATH.fullmatch(name))


def import_object(path: str, sort: str) -> Any:
    """The object at module:object. ValueError that names it where it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module raises
        raise ValueError(
            f"the {sort} {path!r} cannot be imported ({type(error).__name__}: {error}): install its package, or "
            "name its folder in PYTHONPATH"
        ) from error


def _text(path: Path) -> str:
    return (path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8")


TASKS = Registry("task", "oodlib.tasks", "TASK")
BASELINES = Registry("baseline", "oodlib.training.baselines", "BASELINE")
MITIGATIONS = Registry("mitigation", "oodlib.training.mitigations", "MITIGATION")
CLAIMS = Registry("claim", "oodlib.analysis.claims", "CLAIM")
