"""A report to send around: one HTML page, complete in itself, from a run's executed notebooks.

First the scorecard, then text and figures notebook by notebook, how it was done, and where the numbers come from. No
code is shown, and nothing on the page is fetched from elsewhere or runs: no script, and formulas are MathML. What a
notebook holds is data: its HTML is cut down to a short list of tags, its pictures to PNG.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from oodlib.analysis.claims import FORMS, in_unit
from oodlib.io import write_whole
from oodlib.report.html import clean, plain, prose

TEMPLATES = Path(__file__).parent / "templates"
DROPPED_TAGS = {"parameters", "injected-parameters", "remove-in-report"}
# Sections for who sits at the notebook; the invitations stay where they show a figure
EXERCISES = ("check yourself", "predict first")
INVITATIONS = ("train the base model again", "your own checkpoints")
ASIDES = ("*Predict first", "The stage itself.")  # paragraphs that begin so are dropped
SCORECARD = "04_scorecard"
IN_WORDS, SOURCES = "in words", "where these numbers come from"  # said by the page itself, from the JSON files
OWN = (
    "contents",
    "findings",
    "in-short",
    "method",
    "parameters",
    "provenance",
    "stages",
    "conditions",
)  # page's anchors
VERDICTS = ("supported", "not supported", "inconclusive")

WIDGET = "application/vnd.jupyter.widget-view+json"
HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*")


@dataclass
class Section:
    """A heading and the cells below it, as far as a report shows them."""

    title: str
    level: int
    id: str = ""
    cells: list[NotebookNode] = field(default_factory=list)
    widget: bool = False  # it has one, which a page without scripts cannot show

    @cached_property
    def html(self) -> Markup:
        notebook = nbformat.v4.new_notebook(cells=self.cells)
        return Markup(_exporter().from_notebook_node(notebook, {"section": self.name})[0])

    @property
    def name(self) -> str:
        return plain(self.title)

    @property
    def heading(self) -> Markup:
        return Markup(prose(self.title).removeprefix("<p>").removesuffix("</p>\n"))

    def shows(self, kind: str) -> list[NotebookNode]:
        """Its outputs of a MIME type."""
        return [o for cell in self.cells for o in cell.get("outputs", []) if kind in o.get("data", {})]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run's or the sweep's folder to the file `out` (default: FOLDER/report.html); its path.

    Where `out` is a folder, the file lies in it. ValueError where the run's folder holds no executed notebook, or a
    file in it is not what it should be.
    """
    out = Path(out or folder)
    out = out / "report.html" if out.is_dir() else out
    page = as_html(Path(folder))
    write_whole(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out


def as_html(folder: Path) -> str:
    """The page; the same text for the same files."""
    paths = [p for p in sorted((folder / "notebooks").glob("[!.]*.ipynb")) if not p.stem.endswith(".failed")]
    manifest = _json(folder / "manifest.json", {})
    if not paths:
        made = f"`oodlib reproduce --preset {manifest.get('preset', 'tiny')} --out {folder}` makes them"
        raise ValueError(f"{folder} holds no executed notebooks ({folder / 'notebooks'}/*.ipynb): {made}")
    claims = [claim for claim in _json(folder / "scorecard.json", []) if isinstance(claim, dict)]
    said = (*((IN_WORDS,) if claims else ()), *((SOURCES,) if manifest else ()))
    parts = {path.stem: _sections(path, said) for path in paths}
    verdict, *rules = (claims and parts.pop(SCORECARD, None)) or [Section("The scorecard", 1)]
    verdict.cells = [cell for cell in verdict.cells if cell.cell_type == "markdown"]  # its figure is the same table
    _number([verdict, *(section for part in parts.values() for section in part), *rules])
    verdict.title = re.sub(r"^\d+ · ", "", verdict.title)
    name = str(manifest.get("preset") or folder.resolve().name)
    environment = Environment(loader=FileSystemLoader(TEMPLATES / "report"), autoescape=True, trim_blocks=True)
    return environment.get_template("page.html.j2").render(
        name=name,
        seeds=_words(manifest.get("seeds", [])),
        written=str(manifest.get("written", ""))[:10],
        verdict=verdict,
        claims=[_row(claim) for claim in claims],
        tally={v: n for v in VERDICTS if (n := sum(claim.get("verdict") == v for claim in claims))},
        answers=[] if claims else _answers(parts.values()),
        parts=[part for part in parts.values() if part],
        rules=rules,
        parameters={k: _words(v) for k, v in _entries(manifest, "parameters").items()},
        facts={k: _short(v) for k, v in manifest.items() if k not in ("parameters", "stages", "cells")},
        stages=_stages(manifest),
        conditions=_conditions(manifest),
    )


# ---- what of a notebook is shown --------------------------------------------------------------------


def _sections(path: Path, said: tuple[str, ...]) -> list[Section]:
    """A notebook's sections, but for those `said` elsewhere and what is for who sits at the notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, TypeError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: not a notebook: {str(error).splitlines()[0]}") from None
    found = [opening := Section(path.stem, 1)]
    for cell in notebook.cells:
        if DROPPED_TAGS & set(cell.metadata.get("tags", [])):
            continue
        if cell.cell_type == "code":
            outputs = _outputs(cell)
            found[-1].widget |= any(WIDGET in output.get("data", {}) for output in cell.outputs)
            if outputs:
                found[-1].cells.append(nbformat.v4.new_code_cell(outputs=outputs))
        elif cell.cell_type == "markdown":
            for level, title, text in _headed(cell.source):
                if level == 1 and found == [opening] and not opening.cells:
                    opening.title = title
                elif level:
                    found.append(Section(title, max(2, level)))
                _say(found[-1], text)
    return [opening, *(section for section in found[1:] if _wanted(section, said))]


def _headed(source: str) -> Iterator[tuple[int, str, str]]:
    """Markdown in pieces: the level of its heading (0: none), the heading, and the text up to the next."""
    level, title, lines, fenced = 0, "", [], False
    for line in source.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        heading = None if fenced else HEADING.fullmatch(line)
        if heading:
            yield level, title, "\n".join(lines)
            level, title, lines = len(heading[1]), heading[2], []
        else:
            lines.append(line)
    yield level, title, "\n".join(lines)


def _wanted(section: Section, said: tuple[str, ...]) -> bool:
    title = section.title.casefold()
    if title.startswith((*EXERCISES, *said)) or not section.cells:
        return False
    if section.widget and all(cell.cell_type == "markdown" for cell in section.cells):
        return False  # words about a widget that is not there
    return not title.startswith(INVITATIONS) or bool(section.shows("image/png"))


def _say(section: Section, text: str) -> None:
    paragraphs = [p for p in re.split(r"\n\s*\n", text.strip()) if p and not p.startswith(ASIDES)]
    if paragraphs:
        section.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(paragraphs)))


def _outputs(cell: NotebookNode) -> list[NotebookNode]:
    """What a code cell shows: figures, tables, Markdown, and what the cell itself prints.

    Not a progress bar, a warning or a traceback; and of a cell that runs a stage (`ensure`) only figures.
    """
    found: list[NotebookNode] = []
    kinds = ["image/png"] if "ensure(" in cell.source else ["image/png", "text/html", "text/markdown"]
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout").strip()
    if printed and "print(" in cell.source:
        found.append(nbformat.v4.new_output("stream", text=printed))
    for output in cell.outputs:
        data = output.get("data", {})
        kind = next((kind for kind in kinds if kind in data), None)
        if kind == "image/png":
            size = _png_size(data[kind])
            if size:
                name = re.search(r"""["'](\d\d_\w+)["']""", cell.source)
                about = {"name": name.group(1) if name else "", "width": size[0], "height": size[1]}
                found.append(nbformat.v4.new_output("display_data", {kind: data[kind].strip()}, metadata=about))
        elif kind:
            found.append(nbformat.v4.new_output("display_data", {kind: data[kind]}))
    return found


def _png_size(data: Any) -> tuple[int, int] | None:
    """Width and height in pixels; None where it is not the base64 text of a PNG."""
    try:
        raw = base64.b64decode("".join(data.split()), validate=True)
    except (AttributeError, binascii.Error, ValueError):
        return None
    if not raw.startswith(b"\x89PNG\r\n\x1a\n") or len(raw) < 24:
        return None
    return int.from_bytes(raw[16:20]), int.from_bytes(raw[20:24])


def _number(sections: list[Section]) -> None:
    """Give sections anchors, and figures numbers and descriptions, in the order of the page."""
    used = set(OWN)
    figures = 0
    for section in sections:
        base = name = _slug(section.name)
        again = 1
        while name in used:
            again += 1
            name = f"{base}-{again}"
        section.id = name
        used.add(name)
        for output in section.shows("image/png"):
            figures += 1
            about = output.metadata
            kept = f"figures/{about['name']}.svg" if about["name"] else ""
            about.update(number=figures, kept=kept, alt=f"Chart: {section.name}{kept and f' ({kept})'}")


def _answers(parts: Iterable[list[Section]]) -> list[tuple[Section, Markup]]:
    """What the notebooks conclude from the numbers, with the section where it stands."""
    found = [(s, o.data["text/markdown"]) for part in parts for s in part for o in s.shows("text/markdown")]
    return [(section, Markup(prose(text))) for section, text in found]


@cache
def _exporter() -> HTMLExporter:
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_filter("prose", prose)
    exporter.register_filter("clean", clean)
    return exporter


# ---- the JSON files --------------------------------------------------------------------------------


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    """A line of the scorecard, its numbers as text."""
    numbers = [claim.get(name) for name in ("estimate", "ci_low", "ci_high")]
    known = all(isinstance(x, (int, float)) for x in numbers)
    paper, unit = claim.get("paper"), claim.get("unit")
    unit = unit if isinstance(unit, str) and unit in FORMS else ""
    return {
        **claim,
        "measured": in_unit(unit, *numbers) if known else "not measured",
        "paper": in_unit(unit, paper) if isinstance(paper, (int, float)) else "",
    }


def _stages(manifest: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """A line a stage: time (s), peak memory (MiB), when, git, code."""
    names = ("wall_s", "peak_mib", "written", "git", "code")
    return [
        (stage, [_short(about.get(name)) for name in names]) for stage, about in _entries(manifest, "stages").items()
    ]


def _conditions(manifest: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """A line a condition of the sweep: its seeds, time (s), git, code and hardware."""
    together: dict[str, dict[str, dict[str, Any]]] = {}
    for name, cell in _entries(manifest, "cells").items():
        condition, _, seed = name.rpartition("/")
        together.setdefault(condition, {})[seed] = cell
    rows = []
    for condition, seeds in together.items():
        wall_s = round(sum(cell.get("wall_s", 0) for cell in seeds.values()), 1)
        kept = (
            dict.fromkeys(_short(cell.get(name)) for cell in seeds.values()) for name in ("git", "code", "hardware")
        )
        rows.append((condition, [", ".join(sorted(seeds, key=lambda s: (len(s), s))), wall_s, *map(", ".join, kept)]))
    return rows


def _short(value: Any) -> Any:
    """A revision by its first ten digits, a time without its seconds."""
    text = re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}", r"\1", _words(value))
    return value if isinstance(value, (int, float)) else re.sub(r"^(\S{10})T(\d\d:\d\d)\S*$", r"\1 \2", text)


def _words(value: Any) -> str:
    """A value of the manifest as a reader wants it."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_gib', ' (GiB)')} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _entries(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, dict) else {}


def _json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if type(found) is not type(default):
        raise ValueError(f"{path}: expected a {type(default).__name__}")
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-") or "section"
