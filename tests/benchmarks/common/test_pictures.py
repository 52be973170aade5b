"""Pictures of benchmarks can be read: few series that are told apart, named below the panels."""

from __future__ import annotations

from dataclasses import asdict

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from benchmarks.common import accuracy_report
from benchmarks.common.pictures import Picture, fingerprint, is_stale
from benchmarks.images import report as image_report
from benchmarks.images.__main__ import TEMPLATE

ROWS = [{"seed": 0}]


@pytest.fixture
def saved(monkeypatch):
    """Figures, as they were saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **options: (figures.append(figure), save(figure, *args, **options))
    )
    return figures


def look(line):
    return line.get_color(), line._unscaled_dash_pattern


def test_ten_series_look_different_alike_in_all_panels_and_stand_below_them(tmp_path, saved):
    picture = Picture(2, "a title", names=["full run"])
    for number in range(12):
        for panel in picture.panels[number % 2 :]:
            picture.plot_runs(panel, f"method {number}", [1, 2, 3], [[0, 1, number], [1, 1, number]])
    picture.plot(picture.panels[0], "method 0", [1, 2], [3, 3])
    picture.save(tmp_path / "picture.png", ROWS)
    (figure,) = saved
    first, second = ([look(line) for line in panel.get_lines()] for panel in figure.axes)
    assert len({colour for colour, _ in second}) == 10
    assert len({dashes for _, dashes in second}) == 4
    assert set(first) < set(second)
    assert first[0] == first[-1]
    assert "#0072b2" not in {colour for colour, _ in second[:9]}  # the full run's, whether or not there is one
    (legend,) = figure.legends
    names = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert names == [f"method {number}" for number in range(10)]
    assert legend.get_title().get_text() == "10 of 12 are shown"
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert all(box.y1 < panel.get_tightbbox().y0 for panel in figure.axes)
    assert figure.get_suptitle() == "a title"


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_a_picture_bears_its_rows(name, tmp_path):
    def draw():
        picture = Picture()
        picture.plot(picture.panels[0], "a method", [1, 2], [0, 1])
        picture.save(tmp_path / name, ROWS)
        return (tmp_path / name).read_bytes()

    assert is_stale(tmp_path / name, ROWS)
    assert draw() == draw()
    assert not is_stale(tmp_path / name, ROWS)
    assert is_stale(tmp_path / name, [{"seed": 1}])
    assert fingerprint(ROWS) != fingerprint([{"seed": 1}])


def test_accuracies_have_a_panel_for_each_budget(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(accuracy_report, "RESULTS", tmp_path)
    runs = [("uniform", 0.4), ("full", 1.0), ("uniform", 0.6), ("prioritized", 0.6), ("a:b=1,c=2", 0.6)]
    found = [
        {
            **asdict(TEMPLATE),
            "train_instances": 1437,
            "method": method,
            "budget": budget,
            "seed": seed,
            "curve": [[1, 0.5], [2, 0.9 + seed / 100]],
        }
        for method, budget in runs
        for seed in (0, 1)
    ]
    monkeypatch.setattr(accuracy_report, "rows_of", lambda name: found)
    accuracy_report.write_curves(image_report.IMAGES)
    (figure,) = saved
    assert [panel.get_title() for panel in figure.axes] == ["budget 0.6", "budget 0.4"]
    assert [len(panel.get_lines()) for panel in figure.axes] == [4, 2]
    full, uniform = figure.axes[1].get_lines()
    assert look(full) == look(figure.axes[0].get_lines()[0])
    assert look(uniform) == look(figure.axes[0].get_lines()[2])
    names = [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    assert names == ["full run", "prioritized", "uniform", "a:b=1, c=2"]
