"""Differences to the baseline are paired by seed, and the settings that differ are exactly those."""

import itertools
import json
import math

import numpy as np
import pytest

from lightning_autoassist.compare.comparison import compare
from lightning_autoassist.compare.differing import differing_settings, seed_of
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.page import write_page
from lightning_autoassist.compare.series import shown_groups
from lightning_autoassist.compare.tables import as_text, settings_table, tables
from lightning_autoassist.pages.html import as_json
from lightning_autoassist.pages.series_styles import MAX_SERIES, style_of
from tests.helpers.made_runs import run_of, seeded

FULL = {0: 0.80, 1: 0.90, 2: 0.70}
OURS = {2: 0.73, 0: 0.81, 1: 0.92}  # in another order
DIFFERENCES = [OURS[seed] - FULL[seed] for seed in FULL]


def differences(runs, baseline="full"):
    return {each.group: each for each in compare(runs, baseline=baseline).differences}


# ---- by seed


def test_differences_are_paired_by_seed():
    runs = [*seeded("full", FULL), *seeded("ours", OURS)]
    (ours,) = differences(runs).values()
    assert ours.mean == pytest.approx(np.mean(DIFFERENCES))
    assert ours.standard_error == pytest.approx(np.std(DIFFERENCES, ddof=1) / math.sqrt(3))
    assert (ours.num_pairs, ours.num_left_out) == (3, 0)
    unpaired = math.sqrt(sum(np.var(list(finals.values()), ddof=1) / 3 for finals in (FULL, OURS)))
    assert ours.standard_error < unpaired / 4  # what the seeds share is no noise
    *_, table = tables(compare(runs, baseline="full"))
    assert table.title == "Difference to full in acc at the end (higher is better)"
    assert table.lines[1:] == [["ours", "3", "+0.02", "0.0058"]]
    assert not compare(runs, baseline="full").notes[1:]


def test_a_run_without_a_partner_is_left_out_and_told_of():
    comparison = compare([*seeded("full", FULL), *seeded("ours", {**OURS, 7: 0.1})], baseline="full")
    (ours,) = comparison.differences
    assert ours.mean == pytest.approx(np.mean(DIFFERENCES))
    assert (ours.num_pairs, ours.num_left_out) == (3, 1)
    assert any(note.startswith("1 runs of ours and full have no partner") for note in comparison.notes)


@pytest.mark.parametrize(
    "ours",
    [
        seeded("ours", {5: 0.73, 6: 0.81, 7: 0.92}),  # other seeds
        seeded("ours", {0: 0.73, 6: 0.81, 7: 0.92}),  # one in common
        [run_of("ours", [0.1, final]) for final in OURS.values()],  # none is known
        [run for final in OURS.values() for run in seeded("ours", {0: final})],  # one for all
    ],
)
def test_without_seeds_in_common_the_difference_is_that_of_means(ours):
    comparison = compare([*seeded("full", FULL), *ours], baseline="full")
    (found,) = comparison.differences
    assert found.num_pairs == 0
    assert found.mean == pytest.approx(np.mean(DIFFERENCES))
    squares = [np.var(list(finals.values()), ddof=1) / 3 for finals in (FULL, OURS)]
    assert found.standard_error == pytest.approx(math.sqrt(sum(squares)))
    assert "unpaired" in as_text(comparison)
    assert any("differences of means, not of pairs" in note for note in comparison.notes)


def test_single_runs_have_a_difference_and_no_error():
    for seeds in ((0, 0), (0, 1)):
        runs = [*seeded("full", {seeds[0]: 0.8}), *seeded("ours", {seeds[1]: 0.9})]
        comparison = compare(runs, baseline="full")
        (found,) = comparison.differences
        assert found.mean == pytest.approx(0.1)
        assert found.standard_error is None
        assert found.num_pairs == (seeds[0] == seeds[1])
        assert not any("pairs" in note for note in comparison.notes)


def test_runs_that_diverged_have_a_difference_that_is_not_a_number():
    runs = [*seeded("full", FULL), *seeded("ours", {0: math.nan, 1: math.inf, 2: -math.inf})]
    comparison = compare(runs, baseline="full")
    assert math.isnan(comparison.differences[0].mean)
    assert "nan" in as_text(comparison)
    assert json.loads(as_json(comparison.as_dict()))["differences"][0]["mean"] is None


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        ({"seed": 3}, "3"),
        ({"seed": 3.0}, "3"),
        ({"seed_everything": 4}, "4"),
        ({"autoassist": {"seed": 5}}, "5"),
        ({"autoassist": {"seed": 5}, "seed": 3}, "3"),
        ({"seed_everything": True, "autoassist": 3}, None),
        ({}, None),
    ],
)
def test_seeds_are_read_from_the_settings(config, seed):
    assert seed_of(run_of("a", [0.5], config=config)) == seed


# ---- settings that differ


def test_exactly_the_settings_that_differ_are_in_the_table():
    common = {"lr": 0.1, "net": {"depth": 3, "width": [1, 2]}, "note": None}
    runs = [
        run_of("full", [0.5], config={**common, "seed": 0}),
        run_of("full", [0.5], config={**common, "seed": 1, "net": {"depth": 4, "width": [1, 2]}}),
        run_of("ours", [0.5], config={**common, "seed": 0, "autoassist": {"budget": 0.5}}),
    ]
    comparison = compare(runs)
    assert settings_table(comparison).lines == [
        ["setting", "full", "ours"],
        ["autoassist.budget", "-", "0.5"],
        ["net.depth", "3, 4", "3"],
        ["seed", "0, 1", "0"],
    ]
    assert "net.depth" in as_text(comparison)
    assert "note" not in as_text(comparison)
    assert settings_table(compare(runs[:1])) is None


def test_paths_among_the_settings_are_cut_one_by_one(tmp_path):
    runs = [run_of("full", [0.5], config={"data": f"/mnt/disk-of-mine/{name}"}) for name in ("old", "new")]
    write_page(tmp_path / "page.html", compare(runs), runs)
    page = (tmp_path / "page.html").read_text()
    assert "disk-of-mine" not in page
    assert '["data", "\\u2026/old, \\u2026/new"]' in page


def test_many_settings_that_differ_are_left_to_the_page():
    runs = [run_of(name, [0.5], config={f"setting_{n}": name for n in range(30)}) for name in "ab"]
    text = as_text(compare(runs))
    assert "30 settings differ between the runs; compare.html shows them." in text
    assert "setting_7" not in text


@pytest.mark.parametrize("kind", [dict, list])
def test_settings_without_end_are_cut(kind):
    loop = kind()
    if kind is dict:
        loop.update({f"loop_{n}": loop for n in range(12)})
    else:
        loop += [loop] * 12
    runs = [run_of(name, [0.5], config={"name": name, "zloops": {str(n): loop for n in range(2_000)}}) for name in "ab"]
    comparison = compare(runs)
    assert comparison.settings == {"name": {"a": ("a",), "b": ("b",)}}
    assert next(note for note in comparison.notes if "only a part of them is compared" in note).startswith("a: ")


# ---- pictures


def test_ten_series_with_styles_of_their_own():
    runs = [run_of(str(n), [0.5, (n * 7 % 15) / 15]) for n in range(15)]
    comparison = compare(runs, baseline="0")  # the worst
    shown = shown_groups(comparison)
    assert len(shown) == MAX_SERIES == 10
    best = sorted(range(15), key=lambda n: n * 7 % 15)[-9:]
    assert shown == [str(n) for n in sorted([0, *best])]
    styles = [style_of(number) for number in range(10)]
    assert len({style.colour for style in styles}) == 10
    assert all(one.dashes != two.dashes for one, two in itertools.pairwise(styles))
    assert len({style_of(number) for number in range(40)}) == 40


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_many_groups_those_that_diverged_are_left_out(mode):
    runs = [run_of(str(n), [0.5, math.nan if n < 5 else n]) for n in range(15)]
    assert shown_groups(compare(runs, mode=mode)) == [str(n) for n in range(5, 15)]


def drawn(tmp_path, monkeypatch, runs, **options):
    """The figure that is saved."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lightning_autoassist.compare.picture import draw

    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **options: (saved.append(figure), save(figure, *args, **options))
    )
    draw(tmp_path / "picture.png", compare(runs, **options), runs)
    return saved[0]


def test_pictures_have_bands_over_seeds_and_differences(tmp_path, monkeypatch):
    runs = [*seeded("full", FULL), *seeded("ours", OURS), run_of("alone", [0.2, 0.3])]
    figure = drawn(tmp_path, monkeypatch, runs, baseline="full")
    *curves, panel = figure.axes
    assert len(curves) == 3
    band, _ = (path.get_paths()[0].vertices for path in curves[0].collections)  # alone has none
    error = np.std(list(FULL.values()), ddof=1) / math.sqrt(3)
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.1), pytest.approx(0.8 + error))
    bars = [bar.get_children() for bar in panel.containers]
    assert [float(bar[0].get_xdata()[0]) for bar in bars] == pytest.approx([0.3 - 0.8, np.mean(DIFFERENCES)])
    assert panel.get_xlabel() == "difference to full at the end"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["full (3 runs)", "ours (3 runs)", "alone"]
    assert "bands and bars their standard errors" in legend.get_title().get_text()
    box, axes = legend.get_window_extent(), curves[0].get_window_extent()
    assert box.y1 < axes.y0  # outside


def test_pictures_of_many_groups_have_ten(tmp_path, monkeypatch):
    runs = [run_of(f"run {n}", [0.5, n / 15]) for n in range(15)]
    figure = drawn(tmp_path, monkeypatch, runs)
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), str(line.get_linestyle()), line._unscaled_dash_pattern) for line in lines}) == 10
    assert "10 of 15 groups are shown." in figure.legends[0].get_title().get_text()


def test_differing_settings_of_a_run_without_any():
    assert differing_settings({"a": [LoggedRun("a", "a", ())]}) == {}
