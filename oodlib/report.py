"""A report to send around: one HTML page, complete in itself, from a run's executed notebooks.

nbconvert fills in one template (templates/report/): the scorecard, the notebooks' text and figures, the method, and
where the numbers come from. The page shows no code, runs no script and fetches nothing. What a notebook holds is data:
bleach reduces its HTML to text, tables and links to the web, its pictures are PNG, its formulas become MathML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape, unescape
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bleach
import nbformat
from latex2mathml.converter import Converter
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from oodlib.analysis.claims import TESTS, in_unit
from oodlib.io import read_json, write_text

TEMPLATES = Path(__file__).parent / "templates"
HIDDEN = {"parameters", "injected-parameters", "remove-in-report"}  # tags of cells
EXERCISES = [r"#+ (Check yourself|Predict first)"]
ASIDE = re.compile(r"^\*Predict first.*?(?:\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)  # a paragraph for whoever runs it
BLOCKS = "p br hr s del sub sup pre dl dt dd div span h1 h2 h3 h4 h5 h6 table caption thead tbody tfoot tr th td"
TAGS = {*bleach.ALLOWED_TAGS, *re.findall(r"\w+", BLOCKS)}
GONE = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
MATHML = ("xmlns", "display", "stretchy", "mathvariant", "width", "linethickness", "columnalign", "accent", "form")
FORMULA = re.compile(r'<span class="math( block)?">(.*?)</span>', re.DOTALL)
HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)
LONG = re.compile(r"<td>([^<]{29,})</td>")  # a cell that is broken into lines
PNG = re.compile(r"iVBORw0KGgo[\w+/]{21,}={0,2}", re.ASCII)  # base64 of what begins as a PNG does


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run's or the sweep's folder to the file `out` (default: FOLDER/report.html); its path.

    Where `out` is a folder, the file lies in it. ValueError where the run's folder holds no executed notebook, or a
    file in it is damaged.
    """
    out = Path(out or folder)
    out = out / "report.html" if out.is_dir() else out
    write_text(out, as_html(Path(folder)))
    return out


def as_html(folder: Path) -> str:
    """The page; the same text for the same files."""
    manifest = _read(folder / "manifest.json", {})
    claims = [_in_words(claim, folder) for claim in _read(folder / "scorecard.json", [])]
    paths = [p for p in sorted((folder / "notebooks").glob("[!.]*.ipynb")) if not p.stem.endswith(".failed")]
    if not paths:
        command = f"`oodlib reproduce --preset {manifest.get('preset', 'tiny')} --out {folder}` makes them"
        raise ValueError(f"{folder} holds no executed notebooks ({folder / 'notebooks'}/*.ipynb): {command}")
    cells = [cell for path in paths for cell in _cells(path)]
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    config = Config()
    config.TagRemovePreprocessor.update(enabled=True, remove_cell_tags=HIDDEN)
    config.RegexRemovePreprocessor.update(enabled=True, patterns=EXERCISES)
    exporter = HTMLExporter(config=config, template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    page = _Page()
    for name in ("prose", "clean", "figure"):
        exporter.register_filter(name, getattr(page, name))
    exporter.environment.autoescape = True
    about = {name: value for name, value in manifest.items() if name not in ("settings", "splits", "stages", "cells")}
    stages = manifest.get("stages") or manifest.get("cells") or {}
    exporter.environment.globals["report"] = {
        "name": str(manifest.get("preset") or folder.resolve().name),
        "claims": [list(tests) for _, tests in groupby(claims, lambda claim: claim["claim"])],
        "contents": page.contents,
        "settings": list(_flat(manifest.get("settings", {}))),
        "facts": list(_flat(about)),
        "stages": {name: dict(_flat(stage)) for name, stage in stages.items()},
    }
    return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]


class _Page:
    """The filters of the template: they make what notebooks hold safe, and know the last heading."""

    def __init__(self) -> None:
        self.contents: list[tuple[int, str, str]] = []  # of each heading so far: level, anchor, text
        self.title, self.figures = "", 0

    def prose(self, markdown: str) -> Markup:
        """Markdown as safe HTML."""
        renderer = _Renderer(escape=False, exclude_anchor_links=True)
        return self.clean(MarkdownWithMath(renderer=renderer).render(ASIDE.sub("", markdown)))

    def clean(self, html: str) -> Markup:
        """HTML reduced to text, tables and links to the web; headings get anchors, tables a box to scroll in."""
        html = bleach.clean(GONE.sub("", html), TAGS, _attribute, strip=True)
        html = FORMULA.sub(lambda match: mathml(unescape(match[2]).strip(), "block" if match[1] else "inline"), html)
        html = HEADING.sub(self._heading, html)
        box = f'<div class="scroll" tabindex="0" role="group" aria-label="Table: {escape(self.title)}">'
        html = html.replace("<table>", f"{box}<table>").replace("</table>", "</table></div>")
        html = re.sub(r"<th( [^>]*)?>(?:\s|&nbsp;)*</th>", r"<td\1></td>", html)
        html = re.sub(r"<thead>.*?</thead>", lambda m: re.sub(r"<th\b", '<th scope="col"', m[0]), html, flags=re.DOTALL)
        html = re.sub(r"<th\b(?! scope)", '<th scope="row"', html)
        return Markup(LONG.sub(r'<td class="long">\1</td>', html))

    def figure(self, data: str) -> dict[str, Any] | None:
        """A figure's number, title, width (pixels) and data (PNG in base64); None for what is no PNG."""
        data = "".join(data.split())
        if not PNG.fullmatch(data):
            return None
        self.figures += 1
        width = int.from_bytes(base64.b64decode(data[:32])[16:20])
        return {"number": self.figures, "title": self.title, "width": width, "data": data}

    def _heading(self, match: re.Match[str]) -> str:
        """One level below the notebook's, for the page's title is above; never two levels below the one before."""
        before = self.contents[-1][0] if self.contents else 1
        level, anchor = min(int(match[1]) + 1, before + 1, 6), f"section-{len(self.contents) + 1}"
        self.title = unescape(re.sub(r"<[^>]+>", "", match[2]))
        self.contents.append((level, anchor, self.title))
        return f'<h{level} id="{anchor}">{match[2]}</h{level}>'


class _Renderer(IPythonRenderer):
    """Markdown whose formulas stay LaTeX, in a span, until the text is clean; a picture becomes its description."""

    def inline_math(self, body: str) -> str:
        return f'<span class="math">{escape(body)}</span>'

    def block_math(self, body: str) -> str:
        return f'<span class="math block">{escape(body)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML, serialised here because latex2mathml undoes escapes; as it is, where it cannot be read."""
    try:
        math = Converter(display=display).convert_to_element(latex)
    except Exception:  # there are many kinds, and all say that this is not LaTeX
        return f"<code>{escape(latex)}</code>"
    for element in math.iter():
        element.attrib = {name: value for name, value in element.attrib.items() if name in MATHML}
        element.text = element.text and unescape(element.text)
    html = ElementTree.tostring(math, encoding="unicode")
    box = '<span class="scroll formula" tabindex="0" role="group" aria-label="Formula">'
    return f"{box}{html}</span>" if display == "block" else html


def _attribute(tag: str, name: str, value: str) -> bool:
    """Whether an attribute stays: a link to the web, the span of a cell, the mark of a formula."""
    if name == "href":
        return re.match(r"(https?://|mailto:)", value) is not None
    if name in ("colspan", "rowspan"):
        return value.isdecimal()
    return tag == "span" and name == "class" and value in ("math", "math block")


def _cells(path: Path) -> list[nbformat.NotebookNode]:
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat's steps from version to version raise whatever Python does
        raise ValueError(f"{path}: not a notebook: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    return notebook.cells


def _read(path: Path, default: Any) -> Any:
    value = read_json(path, default)
    if type(value) is not type(default):
        raise ValueError(f"{path}: expected a {type(default).__name__}")
    return value


def _in_words(claim: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A claim of scorecard.json, its numbers as text."""
    try:
        measured = in_unit(claim["unit"], claim["estimate"], claim["ci_low"], claim["ci_high"])
        texts = {"measured": measured or "not measured", "paper": in_unit(claim["unit"], claim["paper"])}
        return {**claim, **texts, "claim": str(claim["claim"]), "test": TESTS[claim["test"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'scorecard.json'}: not a claim ({type(error).__name__}: {error})") from None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The values of a nested mapping by dotted name, as text; revisions by their first ten digits."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        value = "none" if value in (None, "") else ("no", "yes")[value] if isinstance(value, bool) else value
        yield name, re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}", r"\1", str(value))
