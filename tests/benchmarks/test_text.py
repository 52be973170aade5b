from __future__ import annotations

import gzip
import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lightning_autoassist import TextAssistant
from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
MODULES = (
    "rows",
    "runs",
    "data",
    "data.apt",
    "text_data",
    "text_classification",
    "accuracy_report",
    "text_report",
)


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark's modules, which find each other as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def test_splits_share_no_text_and_the_vocabulary_is_that_of_what_is_trained_on(benchmark, tmp_path):
    load = benchmark["text_data"].load_texts
    chosen = load("made", tmp_path, choosing=True, max_length=32)
    final = load("made", tmp_path, choosing=False, max_length=32)
    assert len(chosen.train.labels) + len(chosen.held_out.labels) == len(final.train.labels)
    assert len(final.train.labels) + len(final.held_out.labels) == 1200
    assert len(final.held_out.labels) == pytest.approx(200, abs=30)
    assert len(chosen.held_out.labels) == pytest.approx(1000 / 6, abs=30)
    for split in (chosen, final):
        assert max(int(text.max()) for text in split.train.tokens) == split.num_tokens - 1
        assert min(int(text.min()) for text in split.train.tokens) >= 1  # 0 is padding
        assert max(map(len, split.train.tokens)) == 32
        assert split.num_classes == len(split.train.labels.unique()) == 4
        known = {int(token) for text in split.train.tokens for token in text}
        assert {int(token) for text in split.held_out.tokens for token in text} <= known


def test_batches_are_padded_to_their_longest_text(benchmark):
    tokens, labels = benchmark["text_data"].collate(
        [(torch.tensor([5, 6]), torch.tensor(1)), (torch.tensor([7]), torch.tensor(0))]
    )
    assert tokens.tolist() == [[5, 6], [7, 0]]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("model", ["bag", "transformer"])
def test_padding_does_not_change_what_a_net_says(benchmark, model):
    classification = benchmark["text_classification"]
    split = benchmark["text_data"].load_texts("made", Path(), choosing=False, max_length=32)
    net = classification.make_net(replace(classification.TEMPLATE, model=model), split).eval()
    text = split.train.tokens[0][None]
    torch.testing.assert_close(net(text), net(torch.nn.functional.pad(text, (0, 7))))


def test_the_papers_method_is_its_own_for_translation(benchmark):
    callback = benchmark["runs"].Method(benchmark["text_classification"].PAPER).callback()
    assert isinstance(callback.assistant, TextAssistant)
    assert (callback.policy.gamma, callback.policy.confidence_gate) == (0.5, True)
    assert (callback.score, callback.weights) == ("loss", "none")


def test_a_run_filters_and_its_row_says_what_it_was(benchmark, tmp_path):
    classification = benchmark["text_classification"]
    job = replace(
        classification.TEMPLATE,
        dataset="made",
        epochs=6,
        max_length=32,
        learning_rate=0.01,
        method="proportional:assistant=text",
        budget=0.6,
    )
    split = benchmark["text_data"].load_texts("made", tmp_path, choosing=False, max_length=32)
    row = json.loads(json.dumps(classification.run_job(job, split)))
    assert classification.TextJob(**{name: row[name] for name in asdict(job)}) == job
    assert row["settings"]["assistant"] == "TextAssistant"
    assert row["warnings"] == []
    assert row["keep_rate"] < 0.95
    assert row["accuracy"] > 0.7
    assert row["instances_loaded"] == pytest.approx(row["updates"] * 64, rel=0.1)


def test_descriptions_are_made_once_and_then_read(benchmark, tmp_path, monkeypatch):
    documents = [["source", "games", "A game"], ["tool", "utils", "A tool"]]
    (tmp_path / "debian-descriptions.json.gz").write_bytes(gzip.compress(json.dumps(documents).encode()))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt is asked
    first, second = benchmark["text_data"].package_descriptions(tmp_path)
    assert (first.name, first.label, second.text) == ("source", "games", "A tool")


def apt_lists(apt, packages, translations):
    """What apt would have fetched."""
    (apt / "packages.list").write_text(packages)
    (apt / "translations.list").write_text(translations)
    return {"Packages": [apt / "packages.list"], "Translations": [apt / "translations.list"]}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")
def test_descriptions_are_one_of_each_source_of_the_largest_sections(benchmark, tmp_path, monkeypatch):
    data = benchmark["text_data"]
    monkeypatch.setattr(data, "NUM_SECTIONS", 2)
    names = [f"game{i}" for i in range(3)] + [f"tool{i}" for i in range(2)] + ["song"]
    packages = [f"Package: {name}\nDescription-md5: {name}\nSection: {name[:4]}" for name in names]
    packages += ["Package: game0-data\nSource: game0 (1.0)\nDescription-md5: data\nSection: game"]
    packages += ["Package: copy\nDescription-md5: copy\nSection: tool", "Package: silent\nSection: game"]
    texts = {**{name: f"About {name}" for name in names}, "data": "Data of game0", "copy": "About tool0"}
    translations = [f"Package: {name}\nDescription-md5: {name}\nDescription-en: {text}" for name, text in texts.items()]
    lists = apt_lists(tmp_path, "\n\n".join(packages), "\n\n".join(translations))
    monkeypatch.setattr(data.PrivateApt, "update", lambda apt: None)
    monkeypatch.setattr(data.PrivateApt, "index_files", lambda apt, kind, language=None: lists[kind])
    documents = data.package_descriptions(tmp_path)
    assert [document.name for document in documents] == ["game0", "game1", "game2", "tool0", "tool1"]
    assert documents[0].text == "About game0"
    assert (tmp_path / "debian-descriptions.json.gz").exists()


def test_without_the_data_the_command_says_how_to_get_them(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "text_classification.py"), "--data-dir", str(tmp_path / "data")]
    root = str(BENCHMARKS.parent)
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path), "PYTHONPATH": root})
    assert done.returncode == 1
    assert "this machine has no apt; run on Debian or Ubuntu" in done.stderr
    assert "Traceback" not in done.stderr


def test_tables_are_those_of_the_rows(benchmark, tmp_path, monkeypatch):
    report, rows = benchmark["accuracy_report"], benchmark["rows"]
    classification = benchmark["text_classification"]
    monkeypatch.setattr(report, "rows_of", lambda name: rows.rows_of(name, tmp_path))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert benchmark["text_report"].text_tables().startswith("Not measured yet")
    for method, budget, accuracy in (("full", 1.0, 0.8), (classification.PAPER, 0.6, 0.79)):
        job = replace(classification.TEMPLATE, method=method, budget=budget)
        curve = [[50, accuracy - 0.1], [100, accuracy]]
        out = {"accuracy": accuracy, "updates": round(100 * budget), "seconds": 3.0, "curve": curve}
        rows.append_row("text", {**asdict(job), **out, "train_instances": 1000}, tmp_path)
    table = benchmark["text_report"].text_tables()
    assert "| autoassist, TextAssistant, budget 0.6 | 60 | 40% | 79.00 | -1.00 | 3 | 1 | 0.001 |" in table
    texts = benchmark["text_report"].TEXTS
    assert "mean and maximum | 0.6 | 80.00 | - | - | -1.00 | - |" in report.summary_table([texts])
    assert report.stale_curves(texts) == ["text-debian-descriptions-bag-128-10-cpu.png"]
    report.write_curves(texts)
    assert report.stale_curves(texts) == []
