"""Configuration: what a run does, in nested and typed sections, read from YAML and checked before any work.

A file in params/ holds sections (`task`, `model`, `eval`, `sft`, `rl`, `rotation`, `surgery`, `machine`) beside a few
plain values. It may say `like: OTHER` and name only what differs. Every setting is described in settings.py.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from oodlib.io import as_name, digest, one_line, read_text, shown
from oodlib.options import check_options
from oodlib.settings import (
    EvalSettings,
    MachineSettings,
    ModelSettings,
    RLSettings,
    RotationSettings,
    Section,
    SFTSettings,
    SurgerySettings,
    TaskSettings,
    setting,
)
from oodlib.tasks import get_task

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else None  # None: installed from a wheel
SHARE = CHECKOUT or PACKAGE / "share"  # where params/ and notebooks/ are
PARAMS = SHARE / "params"
MOST = 10_000  # values in a YAML file
_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")  # 2e-4, which YAML 1.1 takes for text


def _as_preset(name: str) -> str:
    try:
        return as_name(name)
    except ValueError as error:
        raise ValueError(f"preset = {error}") from None


class Config(Section):
    """All settings of a run."""

    preset: Annotated[str, AfterValidator(_as_preset)] = setting("its name")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = setting("the first seed; every random draw comes from it")
    n_seeds: Annotated[int, Field(ge=1, le=100)] = setting("runs with seeds seed, seed + 1, …")
    out: str | None = setting("folder for the results; not given: outputs/PRESET", None)
    task: TaskSettings
    model: ModelSettings
    eval: EvalSettings
    sft: SFTSettings
    rl: RLSettings
    rotation: RotationSettings
    surgery: SurgerySettings
    machine: MachineSettings = MachineSettings()

    @model_validator(mode="before")
    @classmethod
    def _attempts(cls, values: dict[str, Any]) -> dict[str, Any]:
        """RL plays as many attempts as evaluation, if not said otherwise."""
        rl, evaluation = values.get("rl"), values.get("eval")
        if isinstance(rl, dict) and isinstance(evaluation, dict) and rl.get("attempts") is None:
            values = {**values, "rl": {**rl, "attempts": evaluation.get("attempts")}}
        return values

    @model_validator(mode="after")
    def _possible(self) -> Config:
        get_task(self.task.name, self.task.options)
        for name, values in _lists(self):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} = {values}: a value is listed twice")
        strangers = sorted(set(self.rl.starts) - set(self.sft.checkpoints))
        if strangers:
            raise ValueError(f"rl.starts = {self.rl.starts}: allowed are sft.checkpoints, {self.sft.checkpoints}")
        if self.model.lora and (self.sft.mitigation != "none" or self.rl.algorithm == "ppo"):
            raise ValueError("model.lora goes with sft.mitigation none and with rl.algorithm grpo or rloo")
        if self.machine.launch == "fsdp2" and self.rl.algorithm == "grpo" and self.rl.attempts > 1:
            raise ValueError(
                "machine.launch = 'fsdp2': grpo with several attempts cannot generate from sharded weights; take ddp, "
                "rl.algorithm ppo, or rl.attempts 1"
            )
        check_options(self.sft.options, self.rl.options, self.model.lora, self.rl.algorithm)
        return self

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n_seeds))

    def changed(self, changes: Mapping[str, Any]) -> Config:
        """Another configuration with these changes, by dotted name, checked as every one is."""
        return _validated(_merged(self.model_dump(), _nested(changes)))

    def results_of(self, *sections: str, jobs: bool = False) -> dict[str, Any]:
        """The settings of these sections that decide results, and, if wanted, those that list jobs.

        Data files stand there by their digests.
        """
        found = {name: getattr(self, name).identity(jobs) for name in sections}
        if "task" in found and self.task.options:
            found["task"]["options"] = get_task(self.task.name, self.task.options).parameters()
        return found

    def folder(self) -> Path:
        """Where the run goes: `out`, or outputs/NAME, with a mark of what differs from the file of that name."""
        if self.out:
            return _resolved(self.out)
        name = self.preset
        if (PARAMS / f"{name}.yaml").exists():
            filed = load_config(name)
            parts = ("task", "model", "eval", "sft", "rl", "rotation", "surgery")
            mine, theirs = ({p: getattr(c, p).model_dump() for p in parts} for c in (self, filed))
            mine, theirs = {**mine, "n_seeds": self.n_seeds}, {**theirs, "n_seeds": filed.n_seeds}
            if mine != theirs:
                name += "-" + digest([{p: v for p, v in mine.items() if v != theirs[p]}, self.seed])[:6]
            elif self.seed != filed.seed:
                name += f"-seed{self.seed}"
        return outputs_folder() / name

    def table(self, *sections: str) -> pd.DataFrame:
        """These sections' settings, to read: a row a setting, with its value and what it means."""
        rows = {}
        for section in sections:
            part = getattr(self, section)
            for name, field in type(part).model_fields.items():
                value = getattr(part, name)
                if value not in ({}, None):
                    rows[f"{section}.{name}"] = (_written(value), field.description)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "what it is"])


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _lists(config: Config) -> Iterator[tuple[str, list[Any]]]:
    for section in ("sft", "rl", "surgery"):
        for name, value in getattr(config, section):
            if isinstance(value, list):
                yield f"{section}.{name}", value


def outputs_folder() -> Path:
    """Where runs go that are not told otherwise: outputs/ in a checkout, else in the working directory."""
    return (CHECKOUT or Path.cwd()) / "outputs"


def config_names() -> list[str]:
    """The configurations in params/."""
    return sorted(p.stem for p in PARAMS.glob("*.yaml"))


def load_config(name: str | os.PathLike = "tiny", changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration called `name` (a file in params/, or the path of one), with changes by dotted name.

    A change is a section's mapping ({"sft": {"steps": 3}}) or one setting ({"sft.steps": 3}); None changes nothing.
    Raises ValueError, one line that names the setting, its value and what is allowed. Relative paths in a file are
    relative to the file, in changes to the working directory; where nothing is there, the other way round.
    """
    path = _path(name)
    files = _files(path)
    wanted = _absolute(_nested(changes or {}), Path.cwd(), path.parent)
    try:
        return _validated(reduce(_merged, [*files.values(), wanted]))
    except ValueError as error:
        values: dict[str, Any] = {}
        for file, own in files.items():  # the first that has this fault is to be mended
            values = _merged(values, own)
            if _fault(values) == str(error):
                root = next(iter(files))
                ends = f", and {root} has no `like`" if str(error).endswith("is missing") and root != file else ""
                raise ValueError(f"{file}: {error}{ends}") from None
        raise


def _fault(values: dict[str, Any]) -> str | None:
    try:
        _validated(values)
    except ValueError as error:
        return str(error)
    return None


def config_from(values: Mapping[str, Any]) -> Config:
    """The configuration that the values of a notebook's `parameters` cell describe.

    `preset` names a file, or `like` does, and then `preset` is the run's new name; None changes nothing.
    """
    values = {name: value for name, value in values.items() if value is not None}
    preset, like = values.pop("preset", "tiny"), values.pop("like", None)
    if like is not None and not _path(preset).exists():
        return load_config(like, {**values, "preset": preset})
    return load_config(preset, values)


def _path(name: str | os.PathLike) -> Path:
    if str(name).endswith((".yaml", ".yml")):
        return _resolved(name)
    _resolved(path := PARAMS / f"{name}.yaml")
    return path


def _resolved(name: str | os.PathLike, folder: Path = Path()) -> Path:
    """The absolute path of what is called so in a folder. ValueError for what cannot be a path."""
    try:
        path = (folder / Path(name).expanduser()).resolve()
        path.exists()
    except (ValueError, OSError, RuntimeError) as error:  # NUL, too long, a circle of links, a user who is not there
        raise ValueError(f"{shown(str(name))} cannot be a path: {getattr(error, 'strerror', None) or error}") from None
    return path


def _files(path: Path) -> dict[Path, dict[str, Any]]:
    """The values of a file and of those that it is like, the first that is like no other."""
    files: dict[Path, dict[str, Any]] = {}
    while True:
        if path in files:
            raise ValueError(f"{path}: `like` goes in a circle: {' -> '.join(p.name for p in (*files, path))}")
        if not path.exists():
            where = f" (`like` in {list(files)[-1]})" if files else ""
            name = path.stem if path.parent == PARAMS else str(path)
            raise ValueError(
                f"unknown preset {name!r}{where}: allowed are {', '.join(config_names())}, or a file's path"
            )
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no parameters: expected sections with their settings")
        like = values.pop("like", None)
        try:
            files[path] = {"preset": path.stem, **_absolute(values, path.parent, Path.cwd())}
            if like is None:
                return dict(reversed(files.items()))
            if not isinstance(like, str):
                raise ValueError(f"like = {shown(like)}: expected the name of a preset, or a file's path")
            beside = _resolved(like, path.parent)
            path = beside if like.endswith((".yaml", ".yml")) and beside.exists() else _path(like)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, a repeated key is an error, and aliases cannot blow a value up."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
        for key, times in keys.items():
            if times > 1:
                line = node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice (from line {line})")
        return super().construct_mapping(node, deep)

    def construct_document(self, node: yaml.Node) -> Any:
        if _size(node, {}) > MOST:
            raise yaml.constructor.ConstructorError(
                None, None, f"it holds itself, or more than {MOST} values", node.start_mark
            )
        return super().construct_document(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^(?:{_SCIENTIFIC.pattern})$"), list("-+.0123456789")
)


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """The values in a node, each alias counted as what it stands for; infinite for one that holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for one in inner for part in (one if isinstance(one, tuple) else (one,)))
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def read_yaml(path: Path) -> Any:
    """A YAML file's value. ValueError, one line with the file's name, for one that cannot be read."""
    return _parsed(read_text(path), str(path))


def read_value(text: str) -> Any:
    """A value as YAML writes it, such as 1e-4, [1, 2] or {r: 8}. ValueError where it is none."""
    return _parsed(text, f"{shown(text)} is not a value")


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML raises whatever int(), datetime and others do
        problem = getattr(error, "problem", None) or error
        if isinstance(error, RecursionError):
            problem = "it is nested too deeply"
        if isinstance(error, yaml.reader.ReaderError):
            problem = f"the character {chr(error.character)!r} at {error.position} is not allowed"
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise ValueError(f"{where}{line}: {one_line(problem)}") from None


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by dotted name as sections, what is None left out, numbers as numbers."""
    found: dict[str, Any] = {}
    for name, value in changes.items():
        section, dot, inner = name.partition(".")
        if not section or (dot and not inner):
            raise ValueError(f"{name!r} is no setting: expected SECTION.NAME, such as sft.steps")
        if value is None and not dot:
            continue
        value = value if section == "task" else _numbers(value)
        if dot and isinstance(found.setdefault(section, {}), dict):
            found[section] = {**found[section], inner: value}
        elif isinstance(value, Mapping) and isinstance(found.get(section), dict):
            found[section] = {**found[section], **value}
        else:
            found[section] = value
    return found


def _numbers(value: Any) -> Any:
    """The same value, texts such as 1e-4 as numbers at every depth."""
    if isinstance(value, Mapping):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes over them, setting by setting within a section."""
    merged = dict(values)
    for name, change in changes.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(change, Mapping)
        merged[name] = {**old, **change} if both else change
    return merged


def _absolute(values: dict[str, Any], *folders: Path) -> dict[str, Any]:
    """The same values, paths of data and of a model absolute: in the first of these folders that holds them."""

    def found(path: str) -> Path | None:
        places = (_resolved(path, folder) for folder in folders)
        return next((place for place in places if place.exists()), None)

    values = dict(values)
    model, task = values.get("model"), values.get("task")
    if isinstance(model, dict) and isinstance(source := model.get("source"), str) and len(Path(source).parts) > 1:
        values["model"] = {**model, "source": str(found(source) or source)}
    if isinstance(task, dict) and isinstance(options := task.get("options"), dict):
        paths = {k: str(found(v) or _resolved(v, folders[0])) for k, v in options.items() if _is_path(v)}
        values["task"] = {**task, "options": {**options, **paths}}
    return values


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or bool(Path(value).suffix)) and ":" not in value


def _validated(values: dict[str, Any]) -> Config:
    for name, field in Config.model_fields.items():
        settings = getattr(field.annotation, "model_fields", None)
        if settings and not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{name} = {shown(values[name])}: expected a mapping with any of {', '.join(settings)}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """What is wrong first, in one line."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        *section, _ = first["loc"]
        known = (Config.model_fields[section[0]].annotation if section else Config).model_fields
        hint = f"did you mean {near}? " if (near := _nearest(name)) else ""
        return f"unknown setting {name} = {shown(first['input'])}: {hint}allowed are {', '.join(known)}"
    if first["type"] == "missing":
        return f"the setting {name} is missing"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    return f"{name} = {shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(name: str) -> str | None:
    """The setting that is called most alike, by its dotted name, a flat one (sft_steps), or its last part."""
    sections = {n: getattr(f.annotation, "model_fields", {}) for n, f in Config.model_fields.items()}
    dotted = [*sections, *(f"{section}.{n}" for section, fields in sections.items() for n in fields)]
    names = {d.split(".")[-1]: d for d in reversed(dotted)} | {d.replace(".", "_"): d for d in dotted}
    names |= {d: d for d in dotted}
    near = get_close_matches(name, names, 1)
    return names[near[0]] if near else None
