"""The page of `memweave strategies show --html` in a real browser: 500 nodes that can be read, clicked and searched, and hostile texts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="needs the extra `dev` (playwright)")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from memweave.cli.app import run
from memweave.graph_records import NewQuery, NewStrategy, Principle, RolloutOutcome, StrategyKind
from memweave.memory_stores import StrategySettings, open_strategies
from memweave.records import Scope
from memweave.tracing import TraceStore
from tests.cli import strategy_graphs

pytestmark = pytest.mark.integration

ANNA = Scope(user="anna")
SIZE = {"queries": 340, "paths": 90, "strategies": 70}
NODES = sum(SIZE.values())
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.node')].map((node) => [node, node.getBoundingClientRect()]);
  boxes.sort((a, b) => a[1].left - b[1].left || a[1].top - b[1].top);
  const wrong = [];
  boxes.forEach(([node, box], i) => {
    for (const part of node.children) {
      const inner = part.getBoundingClientRect();
      if (inner.top < box.top - .5 || inner.bottom > box.bottom + .5 || inner.left < box.left || inner.right > box.right + .5)
        wrong.push('spills: ' + node.textContent);
    }
    const [label, facts] = [...node.children].map((part) => part.getBoundingClientRect());
    if (Math.min(label.right, facts.right) - Math.max(label.left, facts.left) > .5
      && Math.min(label.bottom, facts.bottom) - Math.max(label.top, facts.top) > .5) wrong.push('covers: ' + node.textContent);
    for (const [other, its] of boxes.slice(i + 1))
      if (Math.min(box.right, its.right) - Math.max(box.left, its.left) > .1
        && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > .1)
        wrong.push(node.textContent + ' / ' + other.textContent);
  });
  return wrong;
}"""
CROSSINGS = """(shuffled) => {
  const ends = [...document.querySelectorAll('.edge')].map((edge) => edge.getAttribute('d').match(/-?[\\d.]+/g).map(Number));
  let crossed = 0;
  const of = new Map();
  for (const d of ends) of.set(d[0], [...(of.get(d[0]) || []), [d[1], d[7]]]);
  for (const pairs of of.values()) {
    if (shuffled) {
      const right = pairs.map((pair) => pair[1]); pairs.forEach((pair, i) => { pair[1] = right[(i * 7919) % right.length]; });
    }
    pairs.forEach((a, i) => { for (const b of pairs.slice(i + 1)) if ((a[0] - b[0]) * (a[1] - b[1]) < 0) crossed += 1; });
  }
  return crossed;
}"""


@dataclass(frozen=True)
class Opened:
    """A page, and everything that went wrong on it."""

    page: Page
    faults: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a Chromium of this machine, or skip the test and say why."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def shown(folder: Path) -> Path:
    """Run the command on the data folder `folder`; return the page."""
    target = folder / "page.html"
    options = ("--user", "anna", "--home", str(folder), "--html", str(target), "--store", str(folder / "traces.db"))
    assert run(["strategies", "show", *options]) == 0
    return target


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 500 nodes."""
    folder = tmp_path_factory.mktemp("large")
    settings = StrategySettings(match_threshold=1.0)
    with open_strategies(folder, embedding="hashing", settings=settings) as graph:
        traces = strategy_graphs.build(graph, ANNA, **SIZE)
    with TraceStore(folder / "traces.db") as store:
        store.add_many(traces)
    return shown(folder)


def opened(browser: Browser, path: Path, **options: Any) -> Opened:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, **options)
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (faults.append("an alert"), dialog.dismiss()))
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    return Opened(page, faults)


@pytest.fixture
def here(browser: Browser, large: Path) -> Iterator[Opened]:
    """The page of 500 nodes; at the end nothing must have gone wrong."""
    made = opened(browser, large)
    yield made
    made.page.close()
    assert made.faults == []


def test_five_hundred_nodes_are_drawn_and_no_label_overlaps(here: Opened) -> None:
    page = here.page
    expect(page.locator(".node")).to_have_count(NODES)
    assert page.locator(".edge").count() > NODES
    assert page.evaluate(OVERLAPS) == []
    for layer, number in (("query", 340), ("path", 90), ("strategy", 70)):
        expect(page.locator(f".node.{layer}")).to_have_count(number)
    assert page.evaluate("document.body.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "scheme"), [(1024, "light"), (1440, "dark"), (1920, "light"), (600, "light")])
def test_labels_do_not_overlap_on_other_screens(browser: Browser, large: Path, width: int, scheme: Any) -> None:
    made = opened(browser, large, color_scheme=scheme)
    made.page.set_viewport_size({"width": width, "height": 700})
    assert made.page.evaluate(OVERLAPS) == []
    made.page.locator(".node.strategy").nth(30).click()
    made.page.locator("#larger").click()
    assert made.page.evaluate(OVERLAPS) == []
    bright = made.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] > 127")
    assert bright == (scheme == "light")
    assert made.faults == []
    made.page.close()


def test_nodes_are_sorted_so_that_edges_cross_less(here: Opened) -> None:
    assert here.page.evaluate(CROSSINGS, False) < 0.6 * here.page.evaluate(CROSSINGS, True)


def test_it_is_fast_with_five_hundred_nodes(here: Opened) -> None:
    spent = here.page.evaluate(
        """() => {
          const times = [];
          for (const word of ['river', '', 'r', '', 'bridge', '']) {
            const find = document.getElementById('find'), begin = performance.now();
            find.value = word;
            find.dispatchEvent(new Event('input'));
            document.body.getBoundingClientRect();
            times.push(performance.now() - begin);
          }
          return Math.min(...times);
        }"""
    )
    assert spent < 3_000  # milliseconds; about 80 on an idle machine, and the bound leaves room for a busy one


def test_selecting_a_strategy_shows_what_is_behind_it(here: Opened) -> None:
    page, node = here.page, here.page.locator(".node.strategy").first
    summary = node.locator(".label").inner_text()
    node.click()
    panel = page.locator("#panel")
    expect(panel.locator("h2")).to_have_text(summary)
    for part in (
        "Principles",
        "What may be wrong",
        "Paths that lead to it (",
        "Queries behind",
        "Traces behind",
        "Weight updates",
    ):
        expect(panel).to_contain_text(part)
    expect(panel).to_contain_text("contrast of two rollouts")
    # Only what is connected is left, and fits together.
    expect(page.locator(".node.strategy")).to_have_count(1)
    assert 3 <= page.locator(".node.path").count() <= 4
    assert 5 < page.locator(".node.query").count() < 150
    assert page.evaluate(OVERLAPS) == []
    # The traces behind it, as a command and as text.
    command = panel.locator(".trace code").first.inner_text()
    assert command.startswith("memweave traces show ")
    panel.locator("button.open").first.click()
    dialog = page.locator("#dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#dialog-text")).to_contain_text("user: Which ")
    expect(page.locator("#dialog-command")).to_have_text(f"{command} --full")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(".node.strategy")).to_have_count(1)  # the dialog was closed, nothing else
    # From the panel on to a path, and from it to a query.
    panel.locator("section", has_text="Paths that lead to it").locator("button.go").first.click()
    expect(panel).to_contain_text("Strategies it leads to")
    expect(page.locator(".node.path")).to_have_count(1)
    assert page.locator(".node.strategy").count() > 1  # this path leads to others too
    panel.locator("section", has_text="Queries that took it").locator("button.go").first.click()
    expect(panel).to_contain_text("Paths it took")
    expect(page.locator(".node.query")).to_have_count(1)
    assert page.locator(".node.path").count() in (2, 3)
    expect(page.locator(".node[aria-pressed=true]")).to_have_count(1)
    page.locator("#reset").click()
    expect(page.locator(".node")).to_have_count(NODES)


def test_all_stays_in_sight_when_wanted_and_lights_up(here: Opened) -> None:
    page = here.page
    page.locator("#alone").uncheck()
    page.locator(".node.strategy").nth(3).click()
    expect(page.locator(".node")).to_have_count(NODES)
    page.mouse.move(5, 5)
    lit = page.locator(".node.hot").count()
    assert 5 < lit < 150
    assert page.locator(".edge.hot").count() >= lit - 1


def test_search_kinds_and_weights_narrow_the_graph(here: Opened) -> None:
    page = here.page
    page.keyboard.press("/")
    page.keyboard.type("(41)")
    expect(page.locator(".node.strategy")).to_have_count(1)
    expect(page.locator(".node.match")).to_have_count(1)
    expect(page.locator("#shown")).to_contain_text("1 match")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.classList.contains('match')")
    page.locator("#find").fill("nothing says this")
    expect(page.locator("#empty")).to_be_visible()
    page.locator("#reset").click()
    page.locator("#kinds input[name=contrast]").uncheck()
    page.locator("#kinds input[name=positive]").uncheck()
    expect(page.locator(".node.strategy")).to_have_count(23)
    expect(page.locator(".node.strategy.speculative")).to_have_count(23)
    page.locator("#reset").click()
    everything = page.locator(".edge").count()
    page.locator("#least").fill("1.5")
    expect(page.locator("#least-said")).to_have_text("1.50")
    left = page.locator(".edge").count()
    assert 0 < left < everything / 4
    assert page.locator(".node.strategy").count() < 70
    weights = "JSON.parse(document.getElementById('graph').textContent).edges.map((edge) => edge.weight)"
    assert left == sum(weight >= 1.5 for weight in page.evaluate(weights))
    assert page.evaluate(OVERLAPS) == []


def test_weights_are_seen_in_thickness_and_colour(here: Opened) -> None:
    page = here.page
    assert page.locator(".edge.up").count() > 0
    assert page.locator(".edge.down").count() > 0
    widths = "(kind) => [...document.querySelectorAll(kind)].map((edge) => Number(edge.getAttribute('stroke-width')))"
    raised, lowered = (page.evaluate(widths, f".edge.{kind}") for kind in ("up", "down"))
    plain = page.evaluate(widths, ".edge:not(.up):not(.down)")
    assert len(set(plain)) == 1
    assert min(raised) > plain[0] > max(lowered)


def test_an_edge_below_the_pointer_tells_its_weight(here: Opened) -> None:
    page = here.page
    page.locator(".node.strategy").first.click()
    middle = page.evaluate(
        """() => {
          const edge = [...document.querySelectorAll('.edge')].pop(), point = edge.getPointAtLength(edge.getTotalLength() / 2);
          const box = document.querySelector('#board svg').getBoundingClientRect();
          return [box.left + point.x, box.top + point.y];
        }"""
    )
    page.mouse.move(*middle)
    expect(page.locator("#tip")).to_contain_text("weight ")
    page.locator(".node.query").first.hover()
    expect(page.locator("#tip")).to_contain_text("of the same country?")


def test_it_can_be_used_with_keys_alone(here: Opened) -> None:
    page = here.page
    first = page.locator(".node.query").first
    first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.node.query')[1]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.classList.contains('strategy')")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    expect(page.locator(".node.strategy[aria-pressed=true]")).to_have_attribute("aria-label", name)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == name
    assert page.locator(".node[tabindex='0']").count() == 3  # one stop per column
    page.keyboard.press("Escape")
    expect(page.locator(".node")).to_have_count(NODES)
    page.keyboard.press("+")
    expect(page.locator("#zoom")).to_have_text("120%")
    page.keyboard.press("0")
    expect(page.locator("#zoom")).to_have_text("100%")
    page.locator("#fit").click()
    assert page.evaluate(
        "document.getElementById('scroller').scrollHeight <= document.getElementById('scroller').clientHeight + 2"
    )


ATTACKS = (
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 2'>",
    "<svg onload=window.ran=3>",
    "\"><iframe srcdoc='<script>parent.ran=4</script>'>",
    "<!--<script>",
    "]]></script><script>window.ran = 5</script>",
    "javascript:window.ran=6",
    "<a href='https://example.org'>x</a><style>*{display:none}</style>",
    "${window.ran = 7}",
    "__proto__",
)


def test_hostile_texts_are_shown_and_do_not_run(browser: Browser, tmp_path: Path) -> None:
    with (
        open_strategies(
            tmp_path, embedding="hashing", settings=StrategySettings(match_threshold=1.0, machine=ATTACKS[1])
        ) as graph,
        TraceStore(tmp_path / "traces.db") as store,
    ):
        for number, attack in enumerate(ATTACKS):
            run_ = strategy_graphs.trace(attack, attack, 1.0)
            store.add(run_)
            outcomes = [
                RolloutOutcome(states=("Start", f"{attack}{number}", "End"), reward=1.0, trace_id=str(run_.id)),
                RolloutOutcome(states=("Start", attack, "End"), reward=0.5, trace_id=attack),
            ]
            graph.add(NewQuery(text=f"{attack} {number}", query_id=attack, split=attack), outcomes, scope=ANNA)
            paths = [path.id for path in graph.paths(scope=ANNA)][-2:]
            new = NewStrategy(
                summary=f"{attack} {number}", principles=(Principle(text=attack, score=60),), kind=StrategyKind.CONTRAST,
                score=60, uncertainty=attack,
            )  # fmt: skip
            graph.write(new, paths, scope=ANNA, reason=attack, actor=attack)
    made = opened(browser, shown(tmp_path))
    page = made.page
    for number, attack in enumerate(ATTACKS):
        for layer in ("query", "strategy", "path"):
            node = page.locator(f".node.{layer}").filter(
                has_text=f"{attack}{number}" if layer == "path" else f"{attack} {number}"
            )
            node.first.hover()
            node.first.click()
            if layer != "path":
                expect(page.locator("#panel h2")).to_have_text(f"{attack} {number}")
            if page.locator("#panel button.open").count():
                page.locator("#panel button.open").first.click()
                expect(page.locator("#dialog-text")).to_contain_text(attack)
                page.locator("#dialog-close").click()
            page.locator("#reset").click()
    assert page.evaluate("window.ran") is None
    assert page.locator("iframe, img, a").count() == 0
    assert made.faults == []
    page.close()


def test_a_script_that_got_in_would_not_run(browser: Browser, large: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    text = large.read_text(encoding="utf-8")
    spoiled.write_text(text.replace("</main>", "</main><script>window.ran = 1</script>"), encoding="utf-8")
    made = opened(browser, spoiled)
    assert made.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in fault for fault in made.faults)
    expect(made.page.locator(".node")).to_have_count(NODES)
    made.page.close()


def test_a_user_without_a_graph_gets_a_page_that_says_so(browser: Browser, tmp_path: Path) -> None:
    with open_strategies(tmp_path, embedding="hashing"), TraceStore(tmp_path / "traces.db"):
        pass
    made = opened(browser, shown(tmp_path))
    expect(made.page.locator("#empty")).to_be_visible()
    assert made.faults == []
    made.page.close()
