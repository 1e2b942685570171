"""A campaign of faults: python tests/faults/campaign.py ROW --count 200 --seed 1 --results faults.jsonl

A row is a kind of fault; its cases are numbered, and each is made from the seed and its number alone. A line of the
results is a case, so that the same command again goes on where it was cut off. `table` prints what is there.
"""

import argparse
import json
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path

ROWS = {  # row: the module whose `ROW` makes and judges a case, and how many cases a line of the results stands for
    "kill": ("running", 1),
    "disk": ("running", 1),
    "crowd": ("running", 1),
    "answers": ("answers", 10_000),
    "files": ("parameters", 1),
    "settings": ("parameters", 1),
    "commands": ("parameters", 1),
    "checkpoints": ("checkpoints", 1),
    "families": ("families", 1),
    "surroundings": ("surroundings", 1),
    "ray": ("cluster", 1),
}


def run(row: str, count: int, seed: int, results: Path, minutes: float = 1e9) -> list[dict]:
    """The cases of a row that are not in the results yet; returns those that failed, of all."""
    module, size = ROWS[row]
    case = getattr(import_module(module), row)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    mine = [line for line in lines if line["row"] == row and line["seed"] == seed]
    done, start = {line["case"] for line in mine}, time.monotonic()
    for number in (n for n in range(-(-count // size)) if n not in done):
        if time.monotonic() - start > 60 * minutes:
            break
        what, fault = case(seed, number, size)
        mine.append({"row": row, "seed": seed, "case": number, "n": size, "what": what, "fault": fault})
        with results.open("a") as file:
            file.write(json.dumps(mine[-1]) + "\n")
    return [line for line in mine if line["fault"]]


def table(results: Path) -> str:
    """How many cases of each row ran and failed, and the first faults, in Markdown."""
    rows = defaultdict(list)
    for line in results.read_text().splitlines():
        rows[(found := json.loads(line))["row"]].append(found)
    text = ["| row | cases | faults |", "| --- | --- | --- |"]
    text += [f"| {row} | {sum(x['n'] for x in c):,} | {sum(bool(x['fault']) for x in c)} |" for row, c in rows.items()]
    faults = [x for cases in rows.values() for x in cases if x["fault"]]
    return "\n".join([*text, "", *(f"{x['row']} {x['case']} ({x['what']}): {x['fault']}" for x in faults[:20])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "table"])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no case after this")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"))
    asked = parser.parse_args()
    if asked.row != "table":
        run(asked.row, asked.count, asked.seed, asked.results, asked.minutes)
    print(table(asked.results))
