"""What lies in a run's folder, to read: its tables and its manifest, whatever code made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from oodlib.io import COLUMNS, KEYS, first_fault, read_json, read_table
from oodlib.tasks import Splits

TABLES = {
    "measurements": "measurements.csv",
    "hands": "hands.parquet",
    "rollouts": "rollouts.parquet",
    "rotation": "rotation.parquet",
}
NUMBERS = {  # columns that each table must have, of numbers
    "measurements": ("from_step", "step", "seed", "value", "n"),
    "hands": ("from_step", "step", "seed"),
    "rollouts": ("from_step", "seed", "update", "group", "reward", "advantage"),
    "rotation": ("from_step", "step", "seed", "index", "value"),
}
TEXTS = {  # and of text
    "measurements": ("stage", "arm", "split", "metric"),
    "hands": ("stage", "arm", "split", "problem", "outcome"),
    "rollouts": ("stage", "arm", "problem", "outcome"),
    "rotation": ("stage", "arm", "module", "metric"),
}
RARE = 0.05  # answers that are right, as a share, below which a run is judged by reading


def judged_by(measurements: pd.DataFrame, splits: Splits) -> str:
    """The metric by which a run is judged: accuracy, or numbers_read where hardly a headline answer is right at any SFT
    checkpoint (less than RARE), as of a small language model that reads hands and cannot make formulas."""
    sft = measurements[(measurements["stage"] == "sft") & (measurements["split"] == splits.headline.name)]
    means = sft.groupby(["metric", "step"], observed=True)["value"].mean()
    known = means.index.unique("metric")
    rare = "accuracy" in known and means["accuracy"].max() < RARE
    return "numbers_read" if rare and "numbers_read" in known else "accuracy"


def peak_steps(measurements: pd.DataFrame, splits: Splits) -> pd.Series:
    """The SFT step with the highest headline (OOD) accuracy, or reading (see `judged_by`), by seed.

    The earliest, if several are equal."""
    curve = measurements[measurements["metric"] == judged_by(measurements, splits)].query("stage == 'sft'")
    curve = curve[curve["split"] == splits.headline.name].sort_values("step", kind="stable")
    return curve.set_index("step").groupby("seed")["value"].idxmax()


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StageNote(BaseModel, extra="allow", strict=True):
    """What a manifest says of a stage."""

    wall_s: Amount = 0.0
    peak_mib: Amount = 0.0
    seeds: list[int] | None = None  # of a merged run, where not all of its seeds have the stage


class Manifest(BaseModel):
    """What is read of a manifest."""

    seeds: list[int] = []
    settings: dict[str, dict[str, Any]] = {}
    splits: Splits | None = None
    stages: dict[str, StageNote] = {}
    runs: list[dict[str, Any]] = []  # of a merged run: what the manifests of those it was made of say of their code


class Results:
    """What lies in a run's folder, to read. A file that is damaged is a ValueError, one line with its name."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def table(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """A table of `TABLES`, of all stages or one; empty where there is none."""
        path = self.folder / TABLES[name]
        if not path.exists():
            return pd.DataFrame(columns=COLUMNS)
        frame = read_table(path, NUMBERS[name], TEXTS[name])
        if name == "hands" and frame.duplicated([*KEYS, "problem"]).any():
            raise ValueError(f"{path}: a problem stands in it twice for one evaluation")
        return frame[frame["stage"] == stage].reset_index(drop=True) if stage else frame

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        value = read_json(path, {})
        try:
            Manifest.model_validate(value)
        except ValidationError as error:
            raise ValueError(f"{path}: {first_fault(error)}") from None
        return value

    @property
    def splits(self) -> Splits:
        """The splits of the task that was measured."""
        if not (splits := self.manifest.get("splits")):
            raise ValueError(f"{self.folder / 'manifest.json'}: no splits: it does not say which were measured")
        return Splits.from_dict(splits)

    def holds(self, stage: str, settings: Mapping[str, Any], seeds: list[int]) -> bool:
        """Whether a stage was measured with these settings and seeds."""
        known = self.manifest.get("settings", {})
        same = all(known.get(section) == values for section, values in settings.items())
        note = self.manifest.get("stages", {}).get(stage)
        return same and self.manifest.get("seeds") == seeds and note is not None and not note.get("seeds")
