"""The demo, for real: three runs on digits, with few epochs."""

import importlib.util
import math
import struct
import sys

import matplotlib as mpl
import pytest
import torch
from rich.console import Console

from lightning_autoassist.cli import main
from lightning_autoassist.demo.data import DEBIAN_DIR, DEMO_DATA
from lightning_autoassist.demo.project import small_resnet
from lightning_autoassist.demo.results import as_table
from lightning_autoassist.demo.run import PLOT_NAME, run_demo
from tests.command_line.test_cli import one_line_error

NUM_TRAIN, BATCH_SIZE, NUM_EPOCHS, BUDGET = 1437, 32, 4, 0.6


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def results(out):
    threads, backend = torch.get_num_threads(), mpl.get_backend(auto_select=False)
    results = run_demo("digits", budget=BUDGET, num_epochs=NUM_EPOCHS, wandb_mode="offline", out=out)
    assert torch.get_num_threads() == threads
    assert mpl.get_backend(auto_select=False) == backend
    return results


def test_budgeted_runs_make_the_budgets_updates(results):
    full, uniform, filtered = results
    num_batches = math.ceil(BUDGET * NUM_TRAIN / BATCH_SIZE)
    assert full.optimizer_steps == NUM_EPOCHS * math.ceil(NUM_TRAIN / BATCH_SIZE)
    assert uniform.optimizer_steps == filtered.optimizer_steps == NUM_EPOCHS * num_batches


def test_instances_seen(results):
    full, uniform, filtered = results
    assert full.instances_seen == NUM_EPOCHS * NUM_TRAIN
    assert uniform.instances_seen == filtered.instances_seen == uniform.optimizer_steps * BATCH_SIZE


def test_only_the_filtered_run_drops_instances(results):
    full, uniform, filtered = results
    assert full.keep_rate is uniform.keep_rate is None
    assert 0.3 < filtered.keep_rate < 1


def test_every_run_learns_and_is_validated_after_each_epoch(results):
    for result in results:
        updates = [updates for updates, _ in result.curve]
        a_epoch = result.optimizer_steps // NUM_EPOCHS
        assert updates == [a_epoch * epoch for epoch in range(1, NUM_EPOCHS + 1)]
        assert result.curve[-1][1] == result.accuracy > 0.9
        assert result.seconds > 0


def test_table_shows_the_runs_figures(results):
    console = Console(width=120)
    with console.capture() as printed:
        console.print(as_table(results))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.get().splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["full", "uniform 60%", "AutoAssist 60%"]
    for row, result in zip(rows, results, strict=True):
        assert row[1:3] == [f"{result.optimizer_steps:,}", f"{result.instances_seen:,}"]
        assert row[3:5] == [f"{result.seconds:.1f}", f"{100 * result.accuracy:.2f}%"]
        assert row[5] == ("-" if result.keep_rate is None else f"{100 * result.keep_rate:.1f}%")


def test_plot_is_a_png(results, out):
    content = (out / PLOT_NAME).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) > 500


def test_offline_wandb_runs_are_left(results, out):
    # In the order of their ends: the folders' names tell runs that begin in the same second apart by chance.
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 3
    # Logged figures are in there: names and values of the filter's metrics are written as text.
    logs = [file.read_bytes() for file in files]
    assert [b"autoassist/keep_rate" in log for log in logs] == [True, True, True]
    assert [b"autoassist/assistant_auroc" in log for log in logs] == [False, False, True]
    assert all(b"val_accuracy" in log for log in logs)


def test_same_seed_same_figures(results, tmp_path):
    again = run_demo("digits", budget=BUDGET, num_epochs=NUM_EPOCHS, wandb_mode="off", out=tmp_path)
    assert [run.curve for run in again] == [run.curve for run in results]
    assert [run.keep_rate for run in again] == [run.keep_rate for run in results]


def test_demo_from_the_command_line(tmp_path, capsys):
    assert (
        main(["demo", "--epochs", "2", "--budget", "1", "--wandb", "off", "--out", str(tmp_path / "new" / "out")]) == 0
    )
    printed = capsys.readouterr().out
    assert "AutoAssist 100%" in printed
    assert DEMO_DATA["digits"].caveat.split(":")[0] in printed
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == [PLOT_NAME]


def test_wandb_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install" in one_line_error(capsys, "demo", "--wandb", "offline", "--out", str(tmp_path))
    run_demo("digits", num_epochs=4, out=tmp_path)
    assert "W&B is not installed" in capsys.readouterr().out


def test_wandb_online_without_an_account(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no stored key
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "--wandb offline" in one_line_error(capsys, "demo", "--wandb", "online", "--out", str(tmp_path))


@pytest.mark.parametrize(("size", "stem_stride"), [(8, 1), (28, 2)])
def test_network_takes_the_images_of_both_data_sets(size, stem_stride):
    assert small_resnet(stem_stride)(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.skipif(not DEBIAN_DIR.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path):
    split = DEMO_DATA["fashion-mnist"].load(tmp_path)
    assert (len(split.train), len(split.held_out)) == (60_000, 10_000)
    assert split.train.tensors[1].bincount().tolist() == [6000] * 10
