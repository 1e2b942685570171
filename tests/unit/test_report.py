"""The report: complete in itself, cleaned of whatever a notebook holds, and readable by everybody."""

import base64
import itertools
import json
import re
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from oodlib.analysis.claims import in_unit
from oodlib.cli import app
from oodlib.config import CHECKOUT
from oodlib.report import as_html, mathml, write_report

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, and all text outside of the style sheet."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what is not open"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, *tags):
        return [attrs for tag, attrs in self.elements if tag in tags]


def faults(html):
    """What on a page runs, or would be fetched from elsewhere."""
    page = Page(html)
    found = [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed", "base", "form", "svg")]
    for tag, attrs in page.elements:
        found += [name for name in attrs if name.startswith("on")]
        addresses = [attrs[name] for name in ("src", "srcset", "data", "poster", "action", "href") if name in attrs]
        web = r"#|https?:|mailto:" if tag == "a" else r"data:"
        found += [address for address in addresses if not re.match(web, address)]
        found += re.findall(r"url\(", attrs.get("style") or "")
    return found + re.findall(r"url\(|@import", html.partition("<style>")[2].partition("</style>")[0])


def written(folder, *cells, name="01_sft_curve"):
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), folder / "notebooks" / f"{name}.ipynb")
    return as_html(folder)


def shows(*outputs, source="x", **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def data(**kinds):
    return new_output("display_data", {kind.replace("_", "/"): value for kind, value in kinds.items()})


CLAIM = {
    "claim": "C1",
    "test": "paper",
    "verdict": "supported",
    "estimate": 0.3,
    "ci_low": 0.2,
    "ci_high": 0.4,
    "paper": 0.1,
    "title": "OOD accuracy falls",
    "quantity": "the fall",
    "sentence": "It falls.",
    "unit": "points",
    "version": "arXiv:2509.12235v3",
}


@pytest.fixture(scope="module", params=["tiny"])
def committed(request):
    return as_html(CHECKOUT / "outputs" / request.param)


def test_a_committed_run_s_page_runs_nothing_and_fetches_nothing(committed):
    assert faults(committed) == []
    assert len(committed) < 3e6


def test_it_is_a_page_that_everybody_can_read(committed):
    page = Page(committed)
    assert page.open == [] and page.all("html") == [{"lang": "en"}]
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("h1", "header", "nav", "main", "footer")] == [1] * 5
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    names = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(names) == len(set(names))
    assert {a["href"][1:] for a in page.all("a") if a.get("href", "").startswith("#")} <= set(names)
    pictures = [image["alt"] for image in page.all("img")]
    assert len(pictures) >= 9 and all(re.fullmatch(r"Chart: .+", alt) for alt in pictures)
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}
    boxes = [div for div in page.all("div", "span") if div.get("class", "").split()[:1] in (["scroll"], ["paper"])]
    assert len(boxes) >= len(page.all("table")) + len(pictures)
    assert all(box["tabindex"] == "0" and box["role"] == "group" and box["aria-label"] for box in boxes)


def test_it_shows_findings_and_formulas_and_no_code(committed):
    page = Page(committed)
    assert "What was seen" in page.text and page.all("math")
    for noise in ("Check yourself", "Predict first", "import ", "ensure(", "# Parameters", "already done", "$", "\\"):
        assert noise not in page.text


def test_the_scorecard_comes_first_with_the_numbers_of_its_file(committed):
    page = Page(committed).text.partition("The scorecard")[2]
    claims = json.loads((CHECKOUT / "outputs" / "tiny" / "scorecard.json").read_text(encoding="utf-8"))
    for claim in claims:
        measured = in_unit(claim["unit"], *(claim[name] for name in ("estimate", "ci_low", "ci_high")))
        assert claim["title"] in page and claim["sentence"] in page and measured in page
    places = [page.index(claim["sentence"]) for claim in claims] + [page.rindex("The code, packages")]
    assert places == sorted(places)


def test_a_claim_stands_once_with_its_two_tests(tmp_path):
    other = {"test": "baselines", "verdict": "inconclusive", "estimate": None, "ci_low": None, "ci_high": None}
    rows = [CLAIM, {**CLAIM, **other, "paper": None, "sentence": "It may."}, {**CLAIM, "claim": "C10", "title": "Last"}]
    (tmp_path / "scorecard.json").write_text(json.dumps(rows), encoding="utf-8")
    html = written(tmp_path, new_markdown_cell("# A notebook"))
    text = Page(html).text
    assert text.count("OOD accuracy falls") == 1 and html.count('<p class="verdict">') == 3
    order = ["OOD accuracy falls", "as the paper tests it", "It falls.", "+30.0 [+20.0, +40.0] points", "+10.0"]
    order += ["against baselines", "inconclusive", "It may.", "not measured", "C10 · Last"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_method_and_provenance_are_those_of_the_manifest(tmp_path):
    manifest = {
        "preset": "small",
        "seeds": [3, 4],
        "settings": {"sft": {"learning_rate": 0.001, "options": {}}, "rl": {"baselines": ["averaging"]}},
        "git": "0123456789" * 4 + " with changes in oodlib",
        "packages": {"torch": "2.13.0"},
        "hardware": {"gpu": None},
        "stages": {"sft": {"wall_s": 9.9, "peak_mib": 749, "method": 1}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = Page(written(tmp_path, new_markdown_cell("# A notebook"))).text
    method, provenance = text.split("Method")[-1].split("Provenance")
    assert method.split("results.")[1].split() == ["sft.learning_rate0.001", "rl.baselinesaveraging"]
    for text in ("3, 4", "0123456789 with changes in oodlib", "torch", "2.13.0", "hardware.gpu", "none", "9.9", "749"):
        assert text in provenance


def test_what_is_not_for_a_reader_is_left_out(tmp_path):
    traceback = new_output("error", ename="ValueError", evalue="BAD", traceback=["BAD"])
    html = written(
        tmp_path,
        new_markdown_cell("# 01 · The SFT curve\n\nAn opening.\n\n*Predict first: BAD?*"),
        shows(data(text_html="<p>BAD</p>"), parameters=1, tags=["parameters"]),
        shows(data(text_html="<p>BAD</p>"), tags=["remove-in-report"]),
        new_markdown_cell("## A curve"),
        shows(data(text_plain="BAD"), new_output("stream", name="stderr", text="BAD"), traceback, source="BAD = 1"),
        shows(new_output("stream", text="done already: BAD\n"), source="ensure(run)"),
        shows(new_output("stream", text="printed by the cell\n"), source="print(1)"),
        shows(data(text_html="<table><tr><td>kept</td></tr></table>", text_plain="BAD")),
        shows(
            new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"BAD": 1}, "image/png": PNG}),
            source='figure(run, "01_curve")',
        ),
        new_markdown_cell("## Check yourself\n\n1. BAD?"),
        shows(
            new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"BAD": 1}, "text/plain": "BAD"})
        ),
    )
    page = Page(html)
    assert "BAD" not in html
    for kept in ("An opening.", "A curve", "printed by the cell", "kept"):
        assert kept in page.text
    (image,) = page.all("img")
    assert image["src"].endswith(PNG) and image["alt"] == "Chart: A curve" and image["style"] == "--width: 1px"


HOSTILE = [
    "<script>BAD()</script>",
    "<img src=x onerror=BAD()>",
    "<svg onload=BAD()><a xlink:href='javascript:BAD()'><text>x</text></a></svg>",
    '<style>@import "//BAD"</style><link rel=stylesheet href=//BAD>',
    '<a href="javascript:BAD()" onclick="BAD()">x</a><a href="JaVaScRiPt&colon;BAD()">x</a><a href="//BAD">x</a>',
    "<iframe src=http://BAD></iframe><object data=http://BAD></object><embed src=http://BAD><base href=//BAD>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=BAD()&gt;'>",
    '<table style="background:url(http://BAD)" onmouseover=BAD()><tr><td style="background:url(//BAD)">x</table>',
    "<!--><script>BAD()</script>--><![CDATA[<script>BAD()</script>]]>",
    '<noscript><p title="</noscript><script>BAD()</script>"></noscript>',
    "</div></section></main><form action=http://BAD><input formaction=http://BAD><button>x</button></form>",
    '<div style="position:fixed" class="page" id="findings"><meta http-equiv=refresh content="0;http://BAD">x</div>',
    "<span class=formula>&lt;script&gt;BAD()&lt;/script&gt;</span>",
    r"$\text{&lt;script&gt;BAD()&lt;/script&gt;<script>BAD()</script>}\href{javascript:BAD()}{x}$",
    "![x](http://BAD/x.png) [x](javascript:BAD) <http://BAD/> [x](data:text/html,BAD)",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_notebook_puts_nothing_into_the_page(hostile, tmp_path):
    row = CLAIM | dict.fromkeys(("claim", "verdict", "title", "sentence", "quantity", "version"), hostile)
    manifest = {
        "preset": hostile,
        "settings": {hostile: hostile},
        hostile: hostile,
        "stages": {hostile: {"git": hostile}},
    }
    (tmp_path / "scorecard.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    pictures = [hostile, base64.b64encode(hostile.encode()).decode(), f'{PNG}"><script>']
    html = written(
        tmp_path,
        new_markdown_cell(f"# {hostile}\n\n{hostile}\n\n## {hostile}\n\n{hostile} $x$"),
        shows(data(text_html=hostile + "after"), data(text_markdown=hostile), *(data(image_png=p) for p in pictures)),
        shows(new_output("stream", text=hostile), source="print()"),
        new_markdown_cell("## Last\n\nText."),
    )
    page = Page(html)
    assert faults(html) == [] and page.open == [] and len(page.all("meta", "link")) == 5
    assert not page.all("img", "input", "button") and page.all("div").count({"class": "page"}) == 1
    names = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(names) == len(set(names)) and page.text.count("Text.") == 1
    assert "default-src 'none'" in html, "and were there a script, the page's own policy would not run it"


def test_a_table_of_pandas_says_what_its_headers_head(tmp_path):
    frame = pd.DataFrame({"ID accuracy": [0.5, 0.6], "note": ["a", "b" * 40]}, index=["first", "second"])
    styled = "<style>#T_1 { text-align: left; }</style>" + frame.to_html(classes="styled")
    html = written(tmp_path, new_markdown_cell("# Arms & more"), shows(data(text_html=styled)))
    page = Page(html)
    assert [th["scope"] for th in page.all("th")] == ["col"] * 2 + ["row"] * 2, "and the empty corner is no header"
    assert 'aria-label="Table: Arms &amp; more"' in html and '<td class="long">b' in html
    assert "T_1" not in html and "styled" not in html


def test_formulas_become_mathml_and_what_is_none_stays_as_it_is(tmp_path):
    text = r"# Turned by $\theta_i$: $$\cos\theta_i = \sigma_i(U_k^\top \tilde U_k)$$ It costs 5 \$."
    html = written(tmp_path, new_markdown_cell(text.replace(": ", "\n\n")))
    assert html.count("<math") == 2 and 'display="block"' in html and "θ" in html and "σ" in html and "5 $" in html
    assert mathml(r"<\frac{") == r"<code>&lt;\frac{</code>"


def test_only_links_to_the_web_are_links(tmp_path):
    text = "[the report](../outputs/sweep/REPORT.md), [paper](https://arxiv.org/abs/2509.12235), ![a drawing](x.png)"
    html = written(tmp_path, new_markdown_cell(text)).partition("<main")[2]
    assert "the report" in html and "a drawing" in html and html.count("href=") == 1


def call(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_writes_the_page_and_says_where(tmp_path):
    written(tmp_path, new_markdown_cell("# A notebook\n\nText."))
    assert call(tmp_path).exit_code == 0 and "Text." in (tmp_path / "report.html").read_text(encoding="utf-8")
    beside = tmp_path / "elsewhere" / "page.html"
    result = call(tmp_path, "--out", beside)
    assert str(beside) in result.output and beside.read_text(encoding="utf-8") == (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_folder_given_as_the_file_is_kept(tmp_path):
    written(tmp_path, new_markdown_cell("# A notebook\n\nText."))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kept").touch()
    assert write_report(tmp_path, folder) == folder / "report.html" and (folder / "kept").exists()


def test_what_is_missing_or_broken_is_named_in_one_line(tmp_path):
    result = call(tmp_path / "nowhere")
    assert result.exit_code == 2 and "no executed notebooks" in result.output and "oodlib reproduce" in result.output
    written(tmp_path, new_markdown_cell("# A notebook"))
    for path in ("manifest.json", "scorecard.json", "notebooks/02_broken.ipynb"):
        for text in ("{", "3", '[{"claim": "C1"}]', '{"cells": 5, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}'):
            if path == "manifest.json" and "cells" in text:
                continue  # a manifest may hold anything by name
            (tmp_path / path).write_text(text, encoding="utf-8")
            result = call(tmp_path)
            assert result.exit_code == 2 and path in result.output and "Traceback" not in result.output
            assert len(result.output.strip().splitlines()) <= 2
        (tmp_path / path).unlink()
