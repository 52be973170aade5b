"""The page in a real browser: what it shows, and what its controls do."""

import re

import numpy as np
import pytest

from lightning_autoassist.compare.comparison import compare
from lightning_autoassist.compare.page import write_page
from tests.helpers.browser import browser_of, with_script
from tests.helpers.made_runs import NASTY, nasty_runs, run_of, seeded


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return browser_of(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def show(browser, tmp_path):
    """Shows runs, lets a script do something with the page, and returns the page's elements as text."""

    def show(runs, script="", *, width=1000, **options):
        path = tmp_path / "page.html"
        write_page(path, compare(runs, **options), runs)
        if script:
            path.write_text(with_script(path.read_text(), HELPERS + script))
        return browser.dom(path, f"--window-size={width},900")

    return show


HELPERS = """
  const report = text => add(document.body, "p", {"class": "report"}, text);  // as the page adds elements
  const set = (id, value) => {
    const element = byId(id);
    if (element.type === "checkbox") element.checked = value; else element.value = value;
    element.dispatchEvent(new Event("input"));
  };
  const all = selector => [...document.querySelectorAll(selector)];
  const first = () => document.querySelector("#charts svg");
  const numbers = anchor => all("#charts div:first-child text")
    .filter(text => text.getAttribute("text-anchor") === anchor).map(text => text.textContent).join(" ");
  const dots = axis => [...first().querySelectorAll("circle:not(.found)")]
    .map(dot => Number(dot.getAttribute(axis)).toFixed(1)).join(" ");
  const point = number => {
    const place = all("#charts circle")[number].getBoundingClientRect();
    first().dispatchEvent(new PointerEvent("pointermove", {clientX: place.left + 3, clientY: place.top + 3}));
    return byId("tip").textContent.split(String.fromCharCode(10)).join("; ");
  };
"""


def rule(policy):
    return {"policy": {"name": policy}, "budget": 0.5}


def reports(shown):
    return re.findall(r'<p class="report">(.*?)</p>', shown)


def charts(shown):
    return shown.count('<svg class="chart"')


def test_page_in_a_browser(show):
    shown = show(nasty_runs(), baseline="plain")
    assert "<title>autoassist compare</title>" in shown  # the name's script did not run
    assert charts(shown) == 3  # nobody logged instances, and there are differences
    widths = re.findall(r'<svg class="chart" viewBox="0 0 (\d+) 300"', shown)
    assert len(widths) == 2 == 1 + len(set(widths))
    assert "No run logged these." in shown
    assert shown.count('class="line"') == 4 + 2  # and a key in each button
    assert "<td>plain</td><td>1</td><td>0.9</td>" in shown
    assert "&lt;/script&gt;" in shown
    assert shown.count("<script") == 2
    assert "No setting differs between the runs." in shown
    assert "Does it pay?</h2>" not in shown  # nothing tells


def test_hover_and_buttons(show):
    shown = show(
        nasty_runs(),
        """
        report(point(1));
        document.querySelector("#groups button").click();
        report(all("#charts .line").length);
        report(byId("key").textContent);
        """,
    )
    tip, lines, key = reports(shown)
    assert "; acc 0.7; 20 optimizer steps" in f"; {tip}".replace(NASTY, "")
    assert "20 seconds" in tip
    assert lines == "2"  # one of two runs was switched off, in two charts
    assert "1 of 2 groups are shown" in key


def test_logarithmic_axes(show):
    runs = [run_of("a", [1.0, 0.1, 0.01, 0.001], metric="loss"), run_of("b", [-0.5, 0.0], metric="loss")]
    shown = show(
        runs,
        """
        report(numbers("end"));
        set("log-y", true);
        report(numbers("end"));
        report(dots("cy"));
        set("log-x", true);
        report(numbers("middle"));
        report(dots("cx"));
        document.querySelector("#groups button").click();
        report(byId("charts").textContent);
        """,
    )
    linear, log, ys, steps, xs, empty = reports(shown)
    assert "0.5" in linear
    assert {"0.001", "0.01", "0.1", "1"} <= set(log.split())
    ys = [float(y) for y in ys.split()]
    assert len(ys) == 4  # numbers that have no logarithm are left out
    assert np.diff(ys) == pytest.approx([(ys[3] - ys[0]) / 3] * 3, abs=0.2)
    assert {"10", "20"} <= set(steps.split())
    xs = [float(x) for x in xs.split()]
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.2)  # 10, 20, 40 updates
    assert "A logarithmic axis shows numbers above 0 only" in empty


def test_smoothing(show):
    shown = show(
        [run_of("a", [0.0, 1.0] * 10)],
        """
        report(dots("cy"));
        set("smoothing", "0.9");
        report(dots("cy"));
        report(byId("smoothed").textContent);
        report(all(".unsmoothed").length);
        report(point(1));
        """,
    )
    before, after, amount, behind, tip = reports(shown)
    spans = [np.ptp([float(y) for y in ys.split()][10:]) for ys in (before, after)]
    assert spans[1] < spans[0] / 4
    assert amount == "0.9"
    assert behind == "2"  # the line as it was logged, in two charts
    assert "acc 1; smoothed 0.5263" in tip  # (0.9 * 0 + 1) / (0.9 + 1)


def test_bands_differences_and_settings(show):
    runs = [
        *seeded("full", {0: 0.80, 1: 0.90, 2: 0.70}, lr=0.1, autoassist=rule("UniformPolicy")),
        *seeded("ours", {0: 0.81, 1: 0.92, 2: 0.73}, lr=0.2, autoassist=rule("MyPolicy")),
    ]
    shown = show(
        runs,
        """
        report(all(".band").length);
        report(all(".difference title").map(one => one.textContent).join("; "));
        const bar = document.querySelector(".error").getBBox(), dot = document.querySelector(".difference");
        report((bar.x + bar.width / 2 - Number(dot.getAttribute("cx"))).toFixed(1) + " " + (bar.width > 5));
        report(byId("key").textContent);
        report(all("#settings td:first-child").map(cell => cell.textContent).join(" "));
        """,
        baseline="full",
    )
    bands, difference, bar, key, settings = reports(shown)
    assert bands == "4"  # of two groups, in two charts
    assert difference == "ours: 0.02 ± 0.005774"
    assert bar == "0.0 true"
    assert "bands their standard errors" in key
    assert settings == "autoassist.policy.name lr seed"
    assert "Does it pay?</h2><p>At budget 0.5, filtering is not shown to pay" in shown
    assert "<td>ours</td><td>3</td><td>+0.02</td><td>0.0058</td>" in shown


def test_of_many_groups_ten_are_shown_at_first(show):
    runs = [run_of(f"run {n}", [0.5, n / 15]) for n in range(15)]
    shown = show(
        runs,
        """
        report(all("#charts .line").length);
        const look = line => line.getAttribute("stroke") + line.getAttribute("stroke-dasharray");
        const looks = all("#charts div:first-child .line").map(look);
        report(new Set(looks).size);
        all("#groups button[aria-pressed=false]").forEach(button => button.click());
        report(all("#charts .line").length);
        """,
        baseline="run 0",
    )
    assert reports(shown) == ["20", "10", "30"]


def test_a_narrow_page_has_no_scroll_bar_of_its_own(show):
    runs = [*nasty_runs(), run_of("x" * 300, [0.1, 0.2, 0.3], config={"y" * 300: "z" * 300})]
    shown = show(runs, "report(document.documentElement.scrollWidth - window.innerWidth);", width=500, baseline=NASTY)
    assert int(reports(shown)[0]) <= 0
