"""``autoassist instances``: the table is that of the run, and the page shows it, whatever stands in its names."""

from __future__ import annotations

import argparse
import csv
import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch

from lightning_autoassist.cli import main
from lightning_autoassist.filtering.memory.dynamics import Visits
from lightning_autoassist.filtering.memory.frame import COLUMNS, columns_of
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.instances.checkpoints import instances_in
from lightning_autoassist.instances.findings import class_lines, findings, sentences
from lightning_autoassist.instances.page import MAX_ROWS, Names, page_data, png, write_page
from tests.command_line.test_cli import one_line_error
from tests.helpers.browser import browser_of, with_script
from tests.helpers.observed_losses import assert_are, by_hand, fit

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=1">&amp;\u202e'
LAST = 42  # of 48 steps, with a checkpoint at every 14th


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that learns late, so that its checkpoints hold steps that were not learnt from yet: folder and log."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, fit(folder, lag=3)["lines"]


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the table


def test_a_checkpoint_tells_what_the_run_knew_with_all_of_its_steps(run):
    folder, lines = run
    store = instances_in(folder / f"step={LAST}.ckpt")
    assert_are(columns_of(store), by_hand([line for line in lines if line.step < LAST], 200))


def test_the_command_reads_the_newest_checkpoint(run, in_tmp_path, capsys):
    folder, lines = run
    assert main(["instances", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"step={LAST}.ckpt" in said
    assert "200 of 200 instances were seen" in said
    with (in_tmp_path / "autoassist-instances.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", *COLUMNS]
    expected = by_hand([line for line in lines if line.step < LAST], 200)
    for name, values in expected.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=2e-3, atol=2e-3, err_msg=name)
    assert "autoassist instances" in (in_tmp_path / "autoassist-instances.html").read_text()


def test_parquet_holds_the_frame(run, in_tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert main(["instances", str(run[0]), "--out", "there/instances.parquet"]) == 0
    frame = pandas.read_parquet("there/instances.parquet")
    pandas.testing.assert_frame_equal(frame, instances_in(run[0] / f"step={LAST}.ckpt").to_frame())


def test_the_command_shows_what_the_data_set_has(run, in_tmp_path, capsys):
    (in_tmp_path / "train.py").write_text(
        "import torch\ntrain_set = [(torch.full((1, 8, 8), i / 200), i) for i in range(200)]\nfewer = train_set[:10]\n"
    )
    (in_tmp_path / "names.txt").write_text(f"cat\n{HOSTILE}\n", encoding="utf-8")
    words = ["instances", str(run[0]), "--out", "table.csv", "--classes", "names.txt"]
    assert main([*words, "--data", "train.py:train_set"]) == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', (in_tmp_path / "table.html").read_text(), re.DOTALL)[1])
    assert len(data["shown"]) == 120
    assert all(one["picture"].startswith("data:image/png;base64,") for one in data["shown"].values())
    assert "cat" in {row[2] for row in data["rows"]}
    assert [line[0] for line in data["classes"][1:]].count("2") == 1  # it has no name
    capsys.readouterr()
    error = one_line_error(capsys, *words, "--data", "train.py:fewer")
    assert "train.py:fewer has 10 instances, the run had 200" in error


def test_what_cannot_be_read_is_said_in_one_line(run, in_tmp_path, capsys):
    (in_tmp_path / "empty").mkdir()
    (in_tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 no checkpoint")
    torch.save({"callbacks": {}}, in_tmp_path / "plain.ckpt")
    torch.save({"hyper_parameters": argparse.Namespace(lr=1)}, in_tmp_path / "objects.ckpt")
    checkpoint = torch.load(run[0] / f"step={LAST}.ckpt", weights_only=True)
    checkpoint["callbacks"]["AutoAssistCallback"]["selector"]["store"]["dynamics"] = None
    torch.save(checkpoint, in_tmp_path / "without.ckpt")
    checkpoint["callbacks"]["AutoAssistCallback"]["layout"] = 0
    torch.save(checkpoint, in_tmp_path / "older.ckpt")
    for words, said in (
        (["nowhere"], "nowhere does not exist"),
        (["empty"], r"has no checkpoint \(\*\.ckpt\) in it"),
        (["broken.ckpt"], "broken.ckpt"),
        (["plain.ckpt"], "was written without AutoAssistCallback"),
        (["objects.ckpt"], "--trust"),
        (["without.ckpt"], r"dynamics=True"),
        (["older.ckpt"], "another version"),
        ([str(run[0]), "--out", "table.xlsx"], r"--out must end with .csv or .parquet, got table.xlsx"),
        ([str(run[0]), "--data", "nowhere.py:data"], "nowhere.py"),
    ):
        assert re.search(said, one_line_error(capsys, "instances", *words)), words
    assert "hyper" not in one_line_error(capsys, "instances", "objects.ckpt", "--trust")


# ---- what stands out


def made_store(num_instances=12, num_classes=3):
    """Instances with known ends: the first is never learnt, the last never seen, one is forgotten, all else learnt.

    The strongest other class is the next one; at the first visit, the one after that.
    """
    store = InstanceStore(num_instances, dynamics=True)
    rows = np.arange(num_instances - 1)
    store.put_labels(torch.arange(num_instances), torch.arange(num_instances) % num_classes)
    for number in range(4):
        losses = np.linspace(0.1, 0.4, len(rows), dtype=np.float32)
        losses[0], losses[1] = 3.0, 2.0 if number == 2 else 0.2
        margins = np.where(losses < 1, 2.0, -1.5).astype(np.float32)
        others = (rows + (1 if number else 2)) % num_classes
        store.dynamics.observe(Visits(rows, losses, None, number, margins, others))
    store.dynamics.loss_source = "cross_entropy at train.py:31"
    return store


def test_findings_are_those_of_the_losses():
    columns = columns_of(made_store())
    found = findings(columns)
    assert np.flatnonzero(found.is_suspect).tolist() == [0]
    assert np.flatnonzero(found.is_hardest).tolist() == [1]
    assert np.flatnonzero(found.is_redundant).tolist() == list(range(2, 11))
    assert np.flatnonzero(~found.is_seen).tolist() == [11]
    said = " ".join(sentences(columns, found))
    assert "11 of 12 instances were seen, 4.0 times each" in said
    assert "9 (81.8%) were learnt in the first pass and never forgotten" in said
    assert "1 (9.1%) were seen 3 times or more and never learnt" in said
    lines = class_lines(columns, found, ["cat", "dog"])
    assert [line[0] for line in lines] == ["class", "cat", "dog", "2"]
    assert lines[1][1:5] == ["4", "1", "25.0%", "75.0%"]
    assert [line[-1] for line in lines] == ["suggested instead", "dog (1)", "", ""]


def test_the_page_names_the_suggested_labels_where_there_are_any():
    store = made_store()
    data = page_data(store, Names("a.ckpt", ["cat", "dog"]))
    row = dict(zip(["index", "kind", "class", *data["columns"]], data["rows"][0], strict=True))
    assert (row["index"], row["class"], row["suggested_label"], row["area_under_margin"]) == (0, "cat", "dog", -1.5)
    assert data["classes"][0][-1] == "suggested instead"
    store.dynamics = without = InstanceStore(12, dynamics=True).dynamics
    without.observe(Visits(np.arange(5), np.ones(5, np.float32), None, 0))
    data = page_data(store, Names("a.ckpt", ["cat", "dog"]))
    assert not {"suggested_label", "area_under_margin"} & data["columns"].keys()
    assert data["classes"][0][-1] == "mean confidence"


def test_a_page_of_many_instances_stays_small(tmp_path):
    store = InstanceStore(20_000, dynamics=True)
    rng = np.random.default_rng(0)
    store.put_labels(torch.arange(20_000), torch.from_numpy(rng.integers(0, 10, 20_000)))
    for number in range(3):
        losses = rng.exponential(0.5, 20_000).astype(np.float32) + 3 * (np.arange(20_000) < 1000)
        store.dynamics.observe(Visits(np.arange(20_000), losses.astype(np.float32), None, number))
    data = page_data(store, Names("a.ckpt", []))
    assert 2000 < len(data["rows"]) <= MAX_ROWS
    assert sum(data["counts"]) == data["num_instances"] == 20_000
    kinds = [row[1] for row in data["rows"]]
    assert min(kinds.count(number) for number in range(4) if data["counts"][number] > 750) == 750
    write_page(tmp_path / "page.html", store, Names("a.ckpt", []))
    assert (tmp_path / "page.html").stat().st_size < 500_000


def test_pictures_are_pngs():
    image = np.arange(4 * 300 * 3, dtype=np.uint8).reshape(4, 300, 3)
    written = png(image)
    width, height = struct.unpack(">II", written[16:24])
    assert (width, height) == (75, 1)
    (size,) = struct.unpack(">I", written[33:37])
    pixels = zlib.decompress(written[41 : 41 + size])
    assert pixels[1:].startswith(image[0, 0].tobytes() + image[0, 4].tobytes())


# ---- the page


def instance_at(index):
    """A picture, a text, a hostile text, or nothing that can be shown."""
    return [(torch.full((1, 8, 8), 0.5), 1), {"text": "a plain text"}, (HOSTILE, 0), torch.tensor(1.0)][index % 4]


def hostile_page(path):
    write_page(path, made_store(), Names(f"{HOSTILE}.ckpt", [HOSTILE, "x" * 300]), instance_at)
    return path.read_text(encoding="utf-8")


def test_nothing_in_names_or_texts_can_close_the_pages_script(tmp_path):
    page = hostile_page(tmp_path / "page.html")
    assert page.count("<script") == page.count("</script") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&") & set(data)
    assert "</script><script>document.title" in json.loads(data)["source"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return browser_of(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def dom(browser, tmp_path):
    """What the browser makes of a page, once a script has run in a copy of it."""

    def shown(page, script="", *flags):
        report = 'const report = text => add(document.body, "p", {"class": "report"}, String(text));'
        copy = tmp_path / "copy.html"
        copy.write_text(with_script(page, report + script) if script else page)
        return browser.dom(copy, *flags)

    return shown


def reports(shown):
    return re.findall(r'<p class="report">(.*?)</p>', shown, re.DOTALL)


def test_hostile_names_are_shown_as_text(dom, tmp_path):
    shown = dom(hostile_page(tmp_path / "page.html"))
    assert "<title>autoassist instances</title>" in shown  # no script but the page's own ran
    assert shown.count("<script") == 2
    assert "&lt;/script&gt;&lt;script&gt;" in shown
    assert not re.search("<img[^>]*onerror", shown)
    assert shown.count('class="point"') == 11
    assert "9 (81.8%) were learnt in the first pass and never forgotten." in shown
    assert 'src="data:image/png;base64,' in shown
    assert ">a plain text<" in shown


def test_search_sort_and_choice(dom, tmp_path):
    write_page(tmp_path / "page.html", made_store(300), Names("a.ckpt", ["cat", "dog"]))
    script = """
      const firsts = () => [...document.querySelectorAll("#rows tr")].slice(1).map(row => row.cells[0].textContent);
      const set = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event("input")); };
      const buttons = () => [...document.querySelectorAll("#rows th button")];
      const sort = name => buttons().find(button => button.textContent.startsWith(name)).click();
      report(firsts().length); report(firsts()[0]);
      byId("more").click(); report(firsts().length);
      sort("index"); report(firsts()[0]); sort("index"); report(firsts()[0]);
      set("search", "17"); report(firsts());
      set("search", "DOG"); report(firsts().every(index => index % 3 === 1));
      set("search", ""); set("kind", "0"); report(firsts());
      set("kind", ""); set("class", "2"); report(byId("count").textContent);
      set("class", "");
      const point = document.querySelectorAll("circle")[298].getBoundingClientRect();
      const at = {clientX: point.left + 2.5, clientY: point.top + 2.5};
      document.querySelector("#map svg").dispatchEvent(new PointerEvent("pointermove", at));
      report(byId("tip").textContent);
      document.querySelector("#map svg").dispatchEvent(new MouseEvent("click", at)); report(firsts());
    """
    found = reports(dom((tmp_path / "page.html").read_text(), script))
    assert found[:6] == ["100", "0", "200", "0", "298", "17"]
    assert found[6:8] == ["true", "0"]
    assert found[8].startswith("100 of 299 on this page")
    assert found[9].startswith("instance 0, class cat\nsuspected wrong label")
    assert "-1.5 area_under_margin" in found[9]
    assert found[9].endswith("dog suggested_label")
    assert found[10] == "0"


def test_dark_and_narrow(dom, tmp_path):
    page = hostile_page(tmp_path / "page.html")
    script = """
      report(matchMedia("(prefers-color-scheme: dark)").matches);
      report(getComputedStyle(document.body).backgroundColor);
      report(document.documentElement.scrollWidth - window.innerWidth);
    """
    dark = reports(dom(page, script, "--blink-settings=preferredColorScheme=0", "--window-size=500,900"))
    assert dark[:2] == ["true", "rgb(13, 17, 23)"]
    assert int(dark[2]) <= 0
    light = reports(dom(page, script, "--window-size=1400,900"))
    assert light[:2] == ["false", "rgb(255, 255, 255)"]
    assert int(light[2]) <= 0
