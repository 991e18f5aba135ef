"""The report's page: nothing of the data becomes markup, anybody can read it, and a browser has no complaint."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import html as parser

from services.report import write
from services.report.figure import PALETTE
from services.report.html import FOLDER
from services.store import Store
from tests import browser, reports
from tests.reports import EVIL, RUN


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return reports.single(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return reports.several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return reports.searched(tmp_path_factory.mktemp("searched"))


def page(store: Store, folder: Path) -> tuple[Path, Any]:
    """The written page and its parsed tree."""
    path = write(store, RUN, folder / "report.html")
    return path, parser.fromstring(path.read_text("utf-8"))


# Hostile texts


@pytest.mark.parametrize("which", ["single", "several", "searched"])
def test_nothing_of_the_data_becomes_markup(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path, tree = page(request.getfixturevalue(which), tmp_path)
    assert [s.get("type") for s in tree.iter("script")] == ["application/json", None, None]
    assert not list(tree.iter("img"))
    assert not [name for element in tree.iter() for name in element.attrib if name.lower().startswith("on")]
    assert not [a.get("href") for a in tree.iter("a") if not re.match(r"(#|file:///)", a.get("href"))]
    assert "{{7*7}}" in tree.text_content()
    data = json.loads(next(tree.iter("script")).text)
    if which == "single":
        assert data["compared"][0]["items"][0]["base"]["answer"] == f"wrong {EVIL}"
    assert path.stat().st_size < 8_000_000


def test_the_policy_names_the_scripts_of_the_page(single: Store, tmp_path: Path) -> None:
    _, tree = page(single, tmp_path)
    (policy,) = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    own = [s.text for s in tree.iter("script") if s.get("type") is None]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)


# Accessibility


def faults(tree: Any) -> list[str]:
    """What a screen reader or a keyboard would stumble over."""
    found = []
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    found += [f"id {i} is there twice" for i in set(ids) if ids.count(i) > 1]
    if tree.get("lang") is None or not tree.findtext(".//title"):
        found.append("no language or title")
    found += ["an image without alt" for e in tree.iter("img") if e.get("alt") is None]
    labels = {e.get("for") for e in tree.iter("label")}
    found += [
        f"{e.tag} {e.get('id')} without label"
        for e in tree.iter("input", "select", "textarea")
        if e.get("id") not in labels
    ]
    found += ["a button without text" for e in tree.iter("button") if not e.text_content().strip()]
    found += ["a link without text" for e in tree.iter("a") if not e.text_content().strip()]
    found += [
        f"a cell of a head without scope: {e.text_content()}"
        for e in tree.iter("th")
        if e.get("scope") not in ("col", "row")
    ]
    found += ["a table without caption" for e in tree.iter("table") if e.find("caption") is None]
    found += [
        "a picture or region without name"
        for e in tree.iter()
        if e.get("role") in ("img", "region") and not e.get("aria-label")
    ]
    found += [
        f"{e.get('aria-labelledby')} is nowhere" for e in tree.iter() if e.get("aria-labelledby", ids[0]) not in ids
    ]
    found += [
        f"{e.get('href')} leads nowhere"
        for e in tree.iter("a")
        if e.get("href")[0] == "#" and e.get("href")[1:] not in ids
    ]
    levels = [int(e.tag[1]) for e in tree.iter("h1", "h2", "h3", "h4", "h5", "h6")]
    found += [f"heading {b} after {a}" for a, b in zip([0, *levels], levels, strict=False) if b > a + 1]
    found += [f"{n} of {tag}" for tag in ("main", "h1", "nav") if (n := len(list(tree.iter(tag)))) != 1]
    return found


@pytest.mark.parametrize("which", ["single", "several", "searched"])
def test_the_page_is_accessible(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, tree = page(request.getfixturevalue(which), tmp_path)
    assert faults(tree) == []


def test_the_checker_sees_faults() -> None:
    bad = "<html><body><h1>a</h1><h3>b</h3><input id=q><img src=x><table><tr><th>x</th></tr></table></body></html>"
    assert len(faults(parser.fromstring(bad))) == 8


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_both_schemes() -> None:
    """4.5:1 for text, 3:1 for marks of figures."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.DOTALL)[:2]
    ]
    for scheme in schemes:
        for text, back in (
            ("text", "back"), ("text", "panel"), ("text", "mark"), ("text", "warn-back"), ("soft", "back"),
            ("soft", "panel"), ("link", "back"), ("accent", "back"), ("good", "good-back"), ("bad", "bad-back"),
        ):  # fmt: skip
            assert contrast(scheme[text], scheme[back]) >= 4.5, (text, back)
        assert all(contrast(colour, scheme["back"]) >= 3 for colour in PALETTE)


# In a browser


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine")
    pytest.importorskip("websockets")
    with browser.page() as found:
        yield found


def scroll(tab: browser.Page) -> None:
    """To the end and back, so that every figure is drawn."""
    tab.run(
        "(async () => { for (let y = 0; y < document.documentElement.scrollHeight; y += 600) {"
        " scrollTo({top: y, behavior: 'instant'}); await new Promise((done) => setTimeout(done, 30)); } })()"
    )
    tab.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.classList.contains('js-plotly-plot'))")


@pytest.mark.parametrize(
    ("which", "width", "dark"), [("single", 380, True), ("single", 1400, False), ("several", 900, False)]
)
def test_a_browser_shows_it_without_complaint(
    which: str, width: int, dark: bool, request: pytest.FixtureRequest, tab: browser.Page, tmp_path: Path
) -> None:
    path, _ = page(request.getfixturevalue(which), tmp_path)
    tab.errors.clear()
    tab.requests.clear()
    tab.open(path, width=width, dark=dark)
    before = tab.run("document.documentElement.scrollHeight")
    scroll(tab)
    assert tab.errors == []
    assert {r for r in tab.requests if not r.startswith(("data:", "blob:"))} == {path.resolve().as_uri()}
    assert tab.run("window.bad") is None
    assert tab.run("document.documentElement.scrollHeight") == before, "figures moved the page"
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("document.querySelectorAll('.plot .main-svg').length") > 0
    assert faults(parser.fromstring(tab.run("document.documentElement.outerHTML"))) == []
    back = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") != dark


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("which", "width"), [("single", 380), ("single", 1400), ("several", 900)])
def test_axe_finds_no_fault(
    which: str, width: int, dark: bool, request: pytest.FixtureRequest, tab: browser.Page, tmp_path: Path
) -> None:
    """Deque's checker, by the rules of WCAG 2.2 A and AA and its own good practice."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no axe-core: pip install --no-deps axe-playwright-python, which carries it")
    path, _ = page(request.getfixturevalue(which), tmp_path)
    tab.open(path, width=width, dark=dark)
    scroll(tab)
    tab.run("document.querySelectorAll('details').forEach((e) => e.open = true)")
    tab.run((Path(next(iter(found.submodule_search_locations))) / "axe.min.js").read_text("utf-8") + "; true")
    faults = tab.run(
        "axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.help + ' ' + v.nodes.slice(0, 3)"
        ".map((n) => n.html.slice(0, 200) + ' ' + n.failureSummary).join('; ')))"
    )
    assert faults == []


def test_search_and_filters_work(single: Store, tab: browser.Page, tmp_path: Path) -> None:
    path, _ = page(single, tmp_path)
    tab.open(path)

    def ask(element: str, value: str) -> list[str]:
        tab.run(
            f"(() => {{ const e = document.getElementById({element!r}); e.value = {value!r};"
            " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        return list(tab.run("[...document.querySelectorAll('#items .mark')].map((e) => e.textContent)"))

    assert ask("item-search", "") == ["now right", "now wrong"]
    assert ask("item-search", "Question B?") == ["now wrong"]
    assert tab.run("document.getElementById('item-count').textContent") == "1 of 2 items"
    assert ask("item-search", "<img src=x") == ["now right", "now wrong"]
    assert ask("item-search", "") == ["now right", "now wrong"]
    assert ask("item-change", "gained") == ["now right"]
    assert tab.run("document.querySelector('#items pre').textContent.includes('onerror')")
    assert ask("item-change", "moved") == []
    tab.run("document.querySelector('#scores-table thead button').click()")
    assert tab.run("document.querySelector('#scores-table th').getAttribute('aria-sort')") == "ascending"


def test_the_trade_off_follows_its_selects(several: Store, tab: browser.Page, tmp_path: Path) -> None:
    path, _ = page(several, tmp_path)
    tab.open(path)
    assert tab.run("document.getElementById('trade').data.map((t) => t.x[0].toFixed(1))") == [
        "0.2",
        "0.3",
        "0.4",
        "0.5",
    ]
    tab.run(
        "(() => { const e = document.getElementById('trade-x'); e.value = 'chat';"
        " e.dispatchEvent(new Event('change')); })()"
    )
    assert tab.run("document.getElementById('trade').data.map((t) => t.x[0])") == [7.5, 6.5, 5.5, 4.5]


def test_printing_draws_everything_and_opens_what_is_folded(single: Store, tab: browser.Page, tmp_path: Path) -> None:
    path, _ = page(single, tmp_path)
    tab.open(path)
    assert len(tab.call("Page.printToPDF")["data"]) > 10_000
    assert tab.run("document.querySelectorAll('.plot:not(.js-plotly-plot)').length") == 0
    assert tab.run("document.querySelectorAll('details:not([open])').length") > 0
