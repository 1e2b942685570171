"""Markdown, tables and formulas out of a notebook, as HTML that is safe to show and good to read aloud.

What comes in is data from disk. What goes out holds only the tags of `TAGS` with the attributes of `HTML`, and MathML:
no script, no style, no picture, nothing that a browser would fetch.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any
from xml.etree import ElementTree

import bleach
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import Converter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

HTML = {
    "a": ["href"],
    "table": ["class"],
    "th": ["scope", "colspan", "rowspan", "class"],
    "td": ["colspan", "rowspan", "class"],
    "div": ["class", "tabindex", "role", "aria-label"],
    "span": ["class"],
}
TEXT = "p br hr em strong b i s del sub sup code pre ul ol li dl dt dd blockquote caption thead tbody tfoot tr"
TAGS = {*HTML, *TEXT.split(" ")}
GONE = ["script", "style", "template", "iframe", "object", "svg", "math", "noscript"]  # with all that they hold
MATHML = ("xmlns", "display", "stretchy", "mathvariant", "width", "linethickness", "columnalign", "accent", "form")
LONG = 28  # letters; a cell with more is broken into lines
WIDE = 9  # columns; a table with more is printed small
NUMBER = re.compile(r"[+−-]?[\d.,]+( ?%)?( \[.*\])?|–")


def prose(source: str, about: str = "") -> str:
    """Markdown as clean HTML, formulas as MathML. `about` names its tables for who cannot see them."""
    html = clean(MarkdownWithMath(_Prose(escape=True)).render(source), about)
    return re.sub(r'<span class="formula( block)?">(.*?)</span>', _formula, html, flags=re.DOTALL)


def plain(source: str) -> str:
    """Markdown as text alone, on one line."""
    return " ".join(BeautifulSoup(prose(source), "html.parser").get_text().split())


def clean(html: str, about: str = "") -> str:
    """HTML with nothing left but text, tables and links to the web; tables as screen readers want them."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(GONE):
        tag.decompose()
    for tag in soup(["div", "span"]):  # no look, place or role of the page's own
        tag.attrs = {"class": tag["class"]} if "formula" in tag.get("class", []) else {}
    for link in soup("a"):
        _tidy_link(link)
    for table in soup("table"):
        _tidy_table(table)
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": f"Table: {about}".rstrip(": ")}
        table.wrap(soup.new_tag("div", attrs=box))
    return bleach.clean(str(soup), tags=TAGS, attributes=HTML, protocols={"http", "https", "mailto"}, strip=True)


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML; as it stands, where it cannot be read.

    Serialised here, since `latex2mathml` takes back the escapes of what stands in `\\text`.
    """
    try:
        math = Converter(display=display).convert_to_element(latex)
    except Exception:  # of many kinds, and all say that this is not LaTeX
        return f"<code>{escape(latex)}</code>"
    for element in math.iter():
        element.attrib = {name: value for name, value in element.attrib.items() if name in MATHML}
        element.text = element.text and unescape(element.text)
    return ElementTree.tostring(math, encoding="unicode")


def _formula(match: re.Match[str]) -> str:
    latex = unescape(match[2]).strip()
    if not match[1]:
        return mathml(latex)
    math = mathml(latex, "block")
    return f'<span class="scroll formula" tabindex="0" role="group" aria-label="Formula">{math}</span>'


class _Prose(IPythonRenderer):
    """Markdown without raw HTML, pictures and headings; a formula stays LaTeX, in a span, until the text is clean."""

    def inline_math(self, body: str) -> str:
        return f'<span class="formula">{escape(body)}</span>'

    def block_math(self, body: str) -> str:
        return f'<span class="formula block">{escape(body)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def heading(self, text: str, level: int, **_: Any) -> str:
        return f"<p><strong>{text}</strong></p>\n"


def _tidy_link(link: Tag) -> None:
    """A link to a file beside the notebook leads nowhere from a page that was sent: say its path instead."""
    target = str(link.get("href", ""))
    if not re.match(r"(https?|mailto):", target):
        path = re.sub(r"^(\.{1,2}/)+", "", target.split("#")[0])
        if path and ":" not in path and path != link.get_text():
            link.append(f" ({path})")
        link.unwrap()


def _tidy_table(table: Tag) -> None:
    """Headers say what they head; numbers, long texts and wide tables are marked for the style sheet."""
    _join_headers(table)
    _drop_count(table)
    for cell in table(["th", "td"]):
        text = cell.get_text(" ", strip=True)
        cell.attrs = {k: v for k, v in cell.attrs.items() if k in ("colspan", "rowspan") and str(v).isdecimal()}
        if len(text) > LONG:
            cell["class"] = "long"
        if cell.name == "td" or not text:
            cell.name = "td"
            if text.casefold() == "nan":  # not measured
                cell.string = text = "–"
            if NUMBER.fullmatch(text):
                cell["class"] = "number"
        elif cell.find_parent("thead"):
            cell["scope"] = "colgroup" if cell.get("colspan", "1") != "1" else "col"
        else:
            cell["scope"] = "rowgroup" if cell.get("rowspan", "1") != "1" else "row"
    table.attrs = {"class": "wide"} if any(len(row(["th", "td"])) > WIDE for row in table("tr")) else {}
    heads = table.select("thead > tr:last-child > *")
    rows = [row(["th", "td"]) for row in table.select("tbody > tr")]
    for head, *cells in zip(
        *map(reversed, [heads, *rows]), strict=False
    ):  # from the right: on the left a cell may span
        if cells and all(cell.get("class") == "number" for cell in cells):
            head["class"] = "number"


def _join_headers(table: Tag) -> None:
    """Pandas gives the names of the index a row of their own: put them into the row above."""
    *_, above, last = [None, None, *table.select("thead > tr")]
    if above is None or last is None:
        return
    names, upper = last(["th", "td"]), above(["th", "td"])
    filled = [i for i, cell in enumerate(names) if cell.get_text(strip=True)]
    if filled == list(range(len(filled))) and len(filled) < min(len(names), len(upper) + 1):
        for i in filled:
            upper[i].string = names[i].get_text()
        last.decompose()


def _drop_count(table: Tag) -> None:
    """Pandas counts rows that have no name: leave the count out."""
    rows, heads = table.select("tbody > tr"), table.select("thead > tr")
    counted = [row.th.get_text() if row.th else None for row in rows] == [str(i) for i in range(len(rows))]
    if rows and counted and all(cell is not None and not cell.get_text(strip=True) for cell in (h.th for h in heads)):
        for row in (*heads, *rows):
            row.th.decompose()
