"""Runs of other seeds, measured apart, as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from oodlib.io import shown, write_json, write_table, write_whole
from oodlib.results import TABLES, Results
from oodlib.run import STAGES


def merge(folders: list[Path], out: Path, finish: Callable[[Path], None] | None = None) -> Results:
    """Put the tables of runs that differ in their seeds alone into a new folder, as one run of all these seeds.

    For seeds that were measured apart, on machines without a common disk. The manifest says of each run which
    seeds it had and what measured it; a stage's times add up. Of a stage that not all of them have the rows are kept;
    it says whose, and does not count as done. `finish(folder)` may add files before the folder appears. ValueError,
    one line, for what is no finished run, for runs that differ in more than their seeds, and for seeds that occur
    twice.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something already: choose another folder")
    if len(folders) < 2:
        raise ValueError("merge: give the folders of at least two runs")
    runs = [Results(folder) for folder in folders]
    manifests = [run.manifest for run in runs]
    seeds: set[int] = set()
    for run, manifest in zip(runs, manifests, strict=True):
        own, measured = set(manifest.get("seeds", [])), run.table("measurements")
        stages = {stage: note for stage, note in manifest.get("stages", {}).items() if stage in STAGES}
        if not stages or any(
            set(measured.loc[measured["stage"] == stage, "seed"]) != set(note.get("seeds") or own)
            for stage, note in stages.items()
        ):
            raise ValueError(f"{run.folder} holds no finished run: not all of its stages and seeds are in its tables")
        if twice := seeds & own:
            raise ValueError(f"{run.folder}: seed {min(twice)} is measured in another of these runs too")
        seeds |= own
    (first, model), *others = zip(runs, manifests, strict=True)
    for run, manifest in others:
        both = model["stages"].keys() & manifest["stages"].keys()
        facts = [_facts(m, both) for m in (model, manifest)]
        for name in dict.fromkeys((*facts[0], *facts[1])):
            one, other = (of.get(name, "not known") for of in facts)
            if one != other:
                raise ValueError(f"{run.folder}: {name} is {shown(other)}, in {first.folder} {shown(one)}")
    tables = {name: [r.table(name) for r in runs if (r.folder / file).exists()] for name, file in TABLES.items()}
    shared = ("settings", "splits")

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, frames in tables.items():
            if frames:
                write_table(folder / TABLES[name], pd.concat(frames, ignore_index=True))
        stages = {}
        for stage in dict.fromkeys(stage for m in manifests for stage in m["stages"]):
            notes = {i: m["stages"][stage] for i, m in enumerate(manifests) if stage in m["stages"]}
            having = sorted(seed for i, note in notes.items() for seed in note.get("seeds") or manifests[i]["seeds"])
            about = {name: value for name, value in next(iter(notes.values())).items() if name != "seeds"}
            stages[stage] = {
                **about,
                "wall_s": round(sum(note.get("wall_s", 0) for note in notes.values()), 1),
                "peak_mib": max(note.get("peak_mib", 0) for note in notes.values()),
                **({} if having == sorted(seeds) else {"seeds": having}),
            }
        settings = {
            section: next((m["settings"][section] for m in manifests if section in m["stages"]), values)
            for section, values in model["settings"].items()
        }
        heads = [head for m in manifests for head in m.get("runs", [{n: v for n, v in m.items() if n not in shared}])]
        write_json(
            folder / "manifest.json",
            {**model, "seeds": sorted(seeds), "settings": settings, "stages": stages, "runs": heads},
        )
        if finish:
            finish(folder)

    write_whole(out, write)
    return Results(out)


def _facts(manifest: Mapping[str, Any], stages: Collection[str]) -> dict[str, Any]:
    """What runs that are merged must have in common, by name: the settings and methods of these stages, and the splits.

    Not where the model lay, for its files' fingerprint is among the settings.
    """
    used = {section for stage in stages if stage in STAGES for section in (*STAGES[stage].after, stage)}
    settings = {
        f"{section}.{name}": value
        for section, values in manifest.get("settings", {}).items()
        if section in used or section not in STAGES
        for name, value in values.items()
    }
    settings.pop("model.source", None)
    methods = {
        f"the method of {name}": about.get("method")
        for name, about in manifest.get("stages", {}).items()
        if name in STAGES and name in stages
    }
    return {**settings, "splits": manifest.get("splits"), **methods}
