"""The plan of a sweep, params/sweeps/NAME.yaml.

It has conditions (base and SFT), blocks (which arms from which of their starts) and phases (which blocks on which
seeds). A condition with `strengths` stands for several, one a value of a setting; NAME@VALUE is one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from oodlib.config import PARAMS, Config, load_config, read_yaml
from oodlib.io import as_name, digest, first_fault
from oodlib.registry import BASELINES
from oodlib.run import STAGES, Run
from oodlib.tasks import check_choice

PLANS = PARAMS / "sweeps"


@dataclass(frozen=True)
class Cell:
    """A block, a condition and a seed."""

    block: str
    condition: str
    config: Config
    stages: tuple[str, ...]
    drift: int = 0  # ID prompts on which the drift from the base is measured

    @property
    def name(self) -> str:
        return cell_name(self.block, self.condition, self.config.seed)

    @property
    def mark(self) -> str:
        decisive = [Run(self.config).settings(*self.stages), [STAGES[stage].method for stage in self.stages]]
        return digest(decisive + [self.drift] * bool(self.drift))[:16]


def cell_name(block: str, condition: str, seed: int) -> str:
    return f"{block}/{condition}/{seed}"


def _once(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


_Name = Annotated[str, AfterValidator(as_name)]


class _Part(BaseModel, extra="forbid", strict=True):
    pass


class _Condition(_Part):
    why: str = ""
    mitigation: str | None = None
    changes: dict[str, Any] = {}
    strengths: Annotated[dict[str, Annotated[list[float], Field(min_length=1)]], Field(max_length=1)] = {}


class _Block(_Part):
    conditions: Annotated[list[str], Field(min_length=1)]
    starts: list[int] | None = None
    baselines: list[str] = []
    drift: Annotated[int, Field(ge=5)] | None = None


class _Phase(_Part):
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_once)]
    blocks: list[str]


class _PlanFile(_Part):
    like: str
    common: dict[str, Any] = {}
    costs: dict[str, float] = {}
    conditions: dict[_Name, _Condition]
    blocks: dict[_Name, _Block]
    phases: dict[str, _Phase]


class Plan:
    """A plan: `common` changes to the configuration that it is `like`, `conditions`, `blocks` and `phases`.

    name: of a file in params/sweeps, or the path of one.
    """

    def __init__(self, name: str | Path = "sweep"):
        self.path = path = _file(name)
        values = read_yaml(path)
        try:
            _PlanFile.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{path} is no plan of a sweep: {first_fault(error)}") from None
        self.like, self.common, self.costs = values["like"], values.get("common", {}), values.get("costs", {})
        expanded = {name: _at_strengths(name, about) for name, about in values["conditions"].items()}
        self.conditions = {name: about for several in expanded.values() for name, about in several.items()}
        self.blocks: dict[str, dict[str, Any]] = values["blocks"]
        self.phases: dict[str, dict[str, Any]] = values["phases"]
        for name, phase in self.phases.items():
            for block in phase["blocks"]:
                check_choice(f"block of phase {name} in {path}", block, tuple(self.blocks))
        for name, block in self.blocks.items():
            for condition in block["conditions"]:
                check_choice(f"condition of block {name} in {path}", condition, tuple({**expanded, **self.conditions}))
            several = [one for condition in block["conditions"] for one in expanded.get(condition, [condition])]
            self.blocks[name] = {**block, "conditions": several}

    def config(self, condition: str, seed: int, block: str | None = None) -> Config:
        """The configuration of a condition; with a block's starts and baselines, if it has any."""
        check_choice("condition", condition, tuple(self.conditions))
        arms = {f"rl.{k}": v for k, v in self.blocks[block].items() if k in ("starts", "baselines")} if block else {}
        changes = self.conditions[condition].get("changes", {})
        try:
            plain = load_config(self.like, {**self.common, "seed": seed, "n_seeds": 1})
            return plain.changed({"machine.reference": False, **changes, **arms})
        except ValueError as error:
            place = f"condition {condition}" + (f", block {block}" if block else "")
            raise ValueError(f"{self.path}, {place}: {error}") from None

    def _places(self, phase: str) -> list[tuple[str, str, int]]:
        """Block, condition and seed of each cell of a phase, seed by seed: what an interruption leaves is balanced."""
        seeds, blocks = self.seeds(phase), self.phases[phase]["blocks"]
        names = [(block, condition) for block in blocks for condition in self.blocks[block]["conditions"]]
        return [(block, condition, seed) for seed in seeds for block, condition in names]

    def cells(self, phase: str) -> Iterator[Cell]:
        """The cells of a phase."""
        for block, condition, seed in self._places(phase):
            stages = ("sft", "rl") if "starts" in self.blocks[block] else ("sft",)
            config = self.config(condition, seed, block)
            yield Cell(block, condition, config, stages, self.blocks[block].get("drift") or 0)

    def cell_names(self, phase: str) -> list[str]:
        """The names of a phase's cells."""
        return [cell_name(*place) for place in self._places(phase)]

    def seeds(self, phase: str) -> list[int]:
        check_choice("phase", phase, tuple(self.phases))
        return self.phases[phase]["seeds"]

    def names(self, phase: str) -> list[str]:
        """A phase's conditions, in the plan's order."""
        check_choice("phase", phase, tuple(self.phases))
        blocks = self.phases[phase]["blocks"]
        return list(dict.fromkeys(condition for block in blocks for condition in self.blocks[block]["conditions"]))

    def mitigations(self, phase: str) -> pd.DataFrame:
        """A phase's conditions that are mitigations, plain SFT among them, as index: columns mitigation, strength (NaN:
        it has none), and name, both together."""
        rows = {}
        for condition in self.names(phase):
            if mitigation := self.conditions[condition].get("mitigation"):
                strength = self.conditions[condition].get("strength")
                name = mitigation if strength is None else f"{mitigation}, {strength:g}"
                rows[condition] = (mitigation, strength, name)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mitigation", "strength", "name"])

    def listed(self, phase: str) -> pd.DataFrame:
        """A phase's mitigations, to read: why each is there, and its strengths."""
        about = self.mitigations(phase)
        rows = {}
        for mitigation, rows_of in about.groupby("mitigation", sort=False):
            strengths = ", ".join(f"{value:g}" for value in rows_of["strength"].dropna())
            rows[mitigation] = (self.conditions[rows_of.index[0]]["why"], strengths)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["what it does", "strengths"])

    def annealed(self) -> list[str]:
        """The conditions whose SFT ends at a rate of 0."""
        return [name for name in self.conditions if self.config(name, 0).sft.schedule != "constant_with_warmup"]

    def table(self, *phases: str) -> pd.DataFrame:
        """The conditions of some phases, to read: why each is there, and what it changes."""
        rows = {}
        for name in dict.fromkeys(condition for phase in phases for condition in self.names(phase)):
            changes = self.conditions[name].get("changes", {})
            texts = (f"{part}: " + ", ".join(f"{k} {v}" for k, v in change.items()) for part, change in changes.items())
            rows[name] = (self.conditions[name]["why"], "; ".join(texts) or "nothing")
        return pd.DataFrame.from_dict(rows, orient="index", columns=["why", "changes"])

    def arms(self, phase: str) -> pd.DataFrame:
        """What runs from where in a phase, to read: a row a block."""
        rows = {}
        for name in self.phases[phase]["blocks"]:
            block = self.blocks[name]
            arms = ["RL", *(BASELINES.get(b).label for b in block["baselines"])] if "starts" in block else ["none"]
            starts = ", ".join(map(str, block.get("starts", []))) or "none"
            rows[name] = (", ".join(block["conditions"]), starts, ", ".join(arms))
        return pd.DataFrame.from_dict(rows, orient="index", columns=["conditions", "starts", "arms"])

    def hours(self, *phases: str, cores: int = 2) -> float:
        """What phases take by the plan's `costs` (seconds on one core); what cells share is counted once."""
        trained, arms, drifted = set(), set(), 0
        for cell in (cell for phase in phases for cell in self.cells(phase)):
            trained.add((cell.condition, cell.config.seed))
            drifted += bool(cell.drift)
            if "rl" in cell.stages:
                for arm in ("rl", *cell.config.rl.baselines):
                    arms |= {(cell.condition, cell.config.seed, arm, start) for start in cell.config.rl.starts}
        edited = sum(arm != "rl" and BASELINES.get(arm).make_weights is not None for *_, arm, _ in arms)
        counts = {"sft": len(trained), "arm": len(arms) - edited, "edit": edited, "drift": drifted}
        return sum(n * self.costs[name] for name, n in counts.items() if n) / cores / 3600


def _file(name: str | Path) -> Path:
    """The file of a plan, by its name or path."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    names = sorted(path.stem for path in PLANS.glob("*.yaml"))
    return PLANS / f"{check_choice('plan, or path of a YAML file,', str(name), tuple(names))}.yaml"


def _at_strengths(name: str, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A condition as a plan has it, by its name; one with strengths as several, by name@value."""
    about, found = dict(about), {}
    for key, values in about.pop("strengths", {}).items():
        section, _, inner = key.partition(".")
        for value in values:
            changes = dict(about.get("changes", {}))
            changes[section] = {**changes.get(section, {}), inner: value}
            found[f"{name}@{value:g}"] = {**about, "changes": changes, "strength": value}
    return found or {name: about}
