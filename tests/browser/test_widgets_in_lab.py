"""Every widget, operated in JupyterLab as a person would, by mouse and by keyboard, and looked over by axe-core."""

import re

import pytest
from driving import Notebook

pytestmark = pytest.mark.browser

LIMIT_S = 120
ANSWER_S = 60
VIOLATIONS = """element => axe.run(element).then(found => found.violations
    .filter(({impact}) => ['serious', 'critical'].includes(impact))
    .map(({id, help, nodes}) => `${id}: ${help}: ${nodes.map(node => node.html).join(' ')}`))"""


def slide(label, key):
    return lambda box: box.locator(".widget-hslider", has_text=label).locator(".noUi-handle").press(key)


def key(label, name):
    return lambda box: box.get_by_label(label, exact=True).press(name)


def press(label):
    return lambda box: box.get_by_role("button", name=label, exact=True).click()


def choose(label, option):
    return lambda box: box.get_by_label(label, exact=True).select_option(option)


def play_a_hand(box):
    box.get_by_label("hand", exact=True).fill("3 3 8 8")
    press("play")(box)


WIDGETS = {  # where it stands, and what a person does with it: each act changes the result
    "play": ("00_task_and_base", [play_a_hand, key("rule", "ArrowUp"), press("deal")]),
    "timeline": ("01_sft_curve", [slide("SFT step", "Home"), slide("SFT step", "ArrowRight")]),
    "rollouts": ("02_rl_recovery", [slide("update", "ArrowRight"), slide("hand", "ArrowRight")]),
    "surgery": (
        "03_svd_rotation",
        [slide("leading %", "ArrowLeft"), choose("restore", "values"), press("measure on all hands")],
    ),
}


@pytest.mark.parametrize("kind", WIDGETS)
def test_a_widget_can_be_operated_by_everybody(kind, page, lab, small, axe, artefacts):
    name, acts = WIDGETS[kind]
    notebook = Notebook(page, lab, small / f"{name}.ipynb")
    notebook.run_all()
    notebook.finish(LIMIT_S)
    assert not notebook.errors()
    box = page.locator(f".oodlib-widget.oodlib-{kind}")
    box.scroll_into_view_if_needed()
    result = box.locator(".oodlib-result")
    seen = []
    for act in acts:
        notebook.rest(ANSWER_S)
        before = result.inner_html()
        seen.append(result.inner_text())
        act(box)
        changed = "([result, before]) => result.innerHTML !== before"
        page.wait_for_function(changed, arg=[result.element_handle(), before], timeout=1000 * ANSWER_S)
    notebook.rest(ANSWER_S)
    box.screenshot(path=artefacts / f"{kind}.png")
    if kind == "play":
        assert any("They part after" in text for text in seen)
    if kind == "surgery":  # vectors give back what values do not
        restored = [float(re.search(r"OOD ([\d.]+)%", text)[1]) for text in (seen[0], result.inner_text())]
        assert restored[0] > restored[1]
    page.evaluate(axe)
    assert not box.evaluate(VIOLATIONS)
    assert not page.faults
    assert not page.outside
