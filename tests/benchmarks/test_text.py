from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.common import accuracy_report, rows
from benchmarks.common.jobs import PAPER, Method
from benchmarks.text import __main__ as command
from benchmarks.text import data as text_data
from benchmarks.text import report as text_report
from benchmarks.text import runs as text_runs
from lightning_autoassist import TextAssistant
from tests.helpers.paths import ROOT


def test_splits_share_no_text_and_the_vocabulary_is_that_of_what_is_trained_on(tmp_path):
    chosen = text_data.load_texts("made", tmp_path, choosing=True, max_length=32)
    final = text_data.load_texts("made", tmp_path, choosing=False, max_length=32)
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


def test_batches_are_padded_to_their_longest_text():
    tokens, labels = text_data.collate([(torch.tensor([5, 6]), torch.tensor(1)), (torch.tensor([7]), torch.tensor(0))])
    assert tokens.tolist() == [[5, 6], [7, 0]]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("model", ["bag", "transformer"])
def test_padding_does_not_change_what_a_net_says(model):
    split = text_data.load_texts("made", Path(), choosing=False, max_length=32)
    net = text_runs.make_net(replace(command.TEMPLATE, model=model), split).eval()
    text = split.train.tokens[0][None]
    torch.testing.assert_close(net(text), net(torch.nn.functional.pad(text, (0, 7))))


def test_the_papers_method_is_its_own_for_translation():
    callback = Method(PAPER).callback()
    assert isinstance(callback.assistant, TextAssistant)
    assert (callback.policy.gamma, callback.policy.confidence_gate) == (0.5, True)
    assert (callback.score, callback.reweighting) == ("loss", "none")


def test_a_run_filters_and_its_row_says_what_it_was(tmp_path):
    job = replace(
        command.TEMPLATE,
        dataset="made",
        epochs=6,
        max_length=32,
        learning_rate=0.01,
        method="proportional:assistant=text",
        budget=0.6,
    )
    split = text_data.load_texts("made", tmp_path, choosing=False, max_length=32)
    row = json.loads(json.dumps(text_runs.run_job(job, split)))
    assert text_runs.TextJob(**{name: row[name] for name in asdict(job)}) == job
    assert row["settings"]["assistant"] == "TextAssistant"
    assert row["warnings"] == []
    assert row["keep_rate"] < 0.95
    assert row["accuracy"] > 0.7
    assert row["instances_loaded"] == pytest.approx(row["updates"] * 64, rel=0.1)


def test_descriptions_are_made_once_and_then_read(tmp_path, monkeypatch):
    documents = [["source", "games", "A game"], ["tool", "utils", "A tool"]]
    (tmp_path / "debian-descriptions.json.gz").write_bytes(gzip.compress(json.dumps(documents).encode()))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt is asked
    first, second = text_data.package_descriptions(tmp_path)
    assert (first.name, first.label, second.text) == ("source", "games", "A tool")


def apt_lists(apt, packages, translations):
    """What apt would have fetched."""
    (apt / "packages.list").write_text(packages)
    (apt / "translations.list").write_text(translations)
    return {"Packages": [apt / "packages.list"], "Translations": [apt / "translations.list"]}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")
def test_descriptions_are_one_of_each_source_of_the_largest_sections(tmp_path, monkeypatch):
    monkeypatch.setattr(text_data, "NUM_SECTIONS", 2)
    names = [f"game{i}" for i in range(3)] + [f"tool{i}" for i in range(2)] + ["song"]
    packages = [f"Package: {name}\nDescription-md5: {name}\nSection: {name[:4]}" for name in names]
    packages += ["Package: game0-data\nSource: game0 (1.0)\nDescription-md5: data\nSection: game"]
    packages += ["Package: copy\nDescription-md5: copy\nSection: tool", "Package: silent\nSection: game"]
    texts = {**{name: f"About {name}" for name in names}, "data": "Data of game0", "copy": "About tool0"}
    translations = [f"Package: {name}\nDescription-md5: {name}\nDescription-en: {text}" for name, text in texts.items()]
    lists = apt_lists(tmp_path, "\n\n".join(packages), "\n\n".join(translations))
    monkeypatch.setattr(text_data.PrivateApt, "update", lambda apt: None)
    monkeypatch.setattr(text_data.PrivateApt, "index_files", lambda apt, kind, language=None: lists[kind])
    documents = text_data.package_descriptions(tmp_path)
    assert [document.name for document in documents] == ["game0", "game1", "game2", "tool0", "tool1"]
    assert documents[0].text == "About game0"
    assert (tmp_path / "debian-descriptions.json.gz").exists()


def test_without_the_data_the_command_says_how_to_get_them(tmp_path):
    arguments = ["-m", "benchmarks.text", "--data-dir", str(tmp_path / "data")]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "this machine has no apt; run on Debian or Ubuntu" in done.stderr
    assert "Traceback" not in done.stderr


def test_tables_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_report, "rows_of", lambda name: rows.rows_of(name, tmp_path))
    monkeypatch.setattr(accuracy_report, "RESULTS", tmp_path)
    assert text_report.text_tables().startswith("Not measured yet")
    for method, budget, accuracy in (("full", 1.0, 0.8), (PAPER, 0.6, 0.79)):
        job = replace(command.TEMPLATE, method=method, budget=budget)
        curve = [[50, accuracy - 0.1], [100, accuracy]]
        out = {"accuracy": accuracy, "updates": round(100 * budget), "seconds": 3.0, "curve": curve}
        rows.append_row("text", {**asdict(job), **out, "train_instances": 1000}, tmp_path)
    table = text_report.text_tables()
    assert "| autoassist, TextAssistant, budget 0.6 | 60 | 40% | 79.00 | -1.00 | 3 | 1 | 0.001 |" in table
    summary = accuracy_report.summary_table([text_report.TEXTS])
    assert "mean and maximum | 0.6 | 80.00 | - | - | - | -1.00 | - |" in summary
    assert accuracy_report.stale_curves(text_report.TEXTS) == ["text-debian-descriptions-bag-128-10-cpu.png"]
    accuracy_report.write_curves(text_report.TEXTS)
    assert accuracy_report.stale_curves(text_report.TEXTS) == []
