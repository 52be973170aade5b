"""The demo, for real: runs of few epochs on the digits with rare classes."""

import importlib.util
import json
import math
import statistics
import struct
import sys

import matplotlib as mpl
import pytest
import torch
from rich.console import Console

from benchmarks.common.rows import rows_of
from lightning_autoassist.cli import main
from lightning_autoassist.demo.data import DEBIAN_DIR, digits, long_tailed_digits
from lightning_autoassist.demo.project import small_resnet
from lightning_autoassist.demo.rare_events import EventClassifier, EventSplit, split_events
from lightning_autoassist.demo.results import RunResult, as_table, differences, draw, in_points
from lightning_autoassist.demo.run import PLOT_NAME, DemoRun, run_demo, train
from lightning_autoassist.demo.settings import DEMO_DATA, FULL, POLICIES_SHOWN, UNIFORM
from lightning_autoassist.policies import POLICIES
from tests.command_line.test_cli import one_line_error
from tests.helpers.wandb_files import records_of

NUM_TRAIN, BATCH_SIZE, NUM_EPOCHS, BUDGET = 377, 32, 6, 0.6
METHODS = (FULL, UNIFORM, "prioritized")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def results(out):
    threads, backend = torch.get_num_threads(), mpl.get_backend(auto_select=False)
    results = run_demo(
        "digits",
        policies=["prioritized"],
        num_seeds=2,
        budget=BUDGET,
        num_epochs=NUM_EPOCHS,
        wandb_mode="offline",
        out=out,
    )
    assert torch.get_num_threads() == threads
    assert mpl.get_backend(auto_select=False) == backend
    return results


def of(results, method):
    return [result for result in results if result.method == method]


def test_each_method_has_its_seeds(results):
    assert [(result.method, result.seed) for result in results] == [(name, seed) for seed in (0, 1) for name in METHODS]
    assert len({result.curve for result in results}) == len(results)


def test_budgeted_runs_make_the_budgets_steps(results):
    num_batches = math.ceil(BUDGET * NUM_TRAIN / BATCH_SIZE)
    for result in results:
        is_full = result.method == FULL
        expected = math.ceil(NUM_TRAIN / BATCH_SIZE) if is_full else num_batches
        assert result.optimizer_steps == NUM_EPOCHS * expected
        assert result.instances_seen == (NUM_EPOCHS * NUM_TRAIN if is_full else result.optimizer_steps * BATCH_SIZE)


def test_only_the_policys_runs_drop_instances(results):
    assert all(result.keep_rate is None for method in (FULL, UNIFORM) for result in of(results, method))
    assert all(0.3 < result.keep_rate < 1 for result in of(results, "prioritized"))


def test_every_run_is_validated_and_the_last_point_is_its_end(results):
    for result in results:
        an_epoch = result.optimizer_steps // NUM_EPOCHS
        assert [step for step, _ in result.curve] == [an_epoch * epoch for epoch in range(1, NUM_EPOCHS + 1)]
        assert result.curve[-1][1] == result.value
        assert result.seconds > 0
    assert statistics.fmean(result.value for result in of(results, FULL)) > 0.25  # of ten balanced classes


def test_table_shows_means_errors_and_paired_differences(results):
    console = Console(width=160)
    with console.capture() as printed:
        console.print(as_table(results, "test accuracy"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.get().splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["full", "uniform, 60%", "prioritized (default), 60%"]
    uniform = of(results, UNIFORM)
    for row, method in zip(rows, METHODS, strict=True):
        values = [100 * result.value for result in of(results, method)]
        above = [a - 100 * b.value for a, b in zip(values, uniform, strict=True)]
        assert row[1] == str(of(results, method)[0].optimizer_steps)
        assert row[4] == f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / 2**0.5:.1f}"
        if method != UNIFORM:
            assert row[5] == f"{statistics.mean(above):+.1f} ± {statistics.stdev(above) / 2**0.5:.1f}"
    assert [row[3] for row in rows[:2]] == ["-", "-"]
    assert rows[1][5] == "-"


def test_differences_are_of_the_same_seeds():
    def runs(method, values):
        return [RunResult(method, method, seed, 1, 1, 1.0, value, None, ()) for seed, value in values.items()]

    found = differences(runs("a", {0: 0.5, 1: 0.75, 2: 0.9}), runs("b", {1: 0.25, 0: 0.5}))
    assert found == [0.0, 0.5]
    assert in_points([0.5]) == "50.0"


def test_plot_is_a_png(results, out):
    content = (out / PLOT_NAME).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) > 500


def test_plots_of_one_seed_and_of_many_methods_are_drawn(results, tmp_path):
    one_seed = [result for result in results if result.seed == 0]
    many = [RunResult(f"m{i}", f"m{i}", 0, 1, 1, 1.0, 0.5, None, ((1, 0.4), (2, 0.5))) for i in range(14)]
    for name, shown in {"one": one_seed, "many": many}.items():
        draw(shown, tmp_path / f"{name}.png", "test accuracy")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_offline_wandb_runs_have_lightnings_axes_and_the_seed(results, out):
    folders = sorted((out / "wandb").glob("offline-run-*"))
    assert len(folders) == len(results)
    names = []
    for folder in folders:
        records = list(records_of(folder))
        (run,) = {record.run.display_name for record in records if record.run.display_name}
        names.append(run)
        axes = {record.metric.step_metric for record in records if record.HasField("metric")}
        assert "trainer/global_step" in axes
        logged = {item.key or item.nested_key[0] for record in records for item in record.history.item}
        assert {"trainer/global_step", "val_accuracy", "autoassist/optimizer_steps"} <= logged
        config = {item.key: item.value_json for record in records for item in record.config.update}
        config |= {item.key: item.value_json for record in records for item in record.run.config.update}
        assert json.loads(config["seed"]) in (0, 1)
    assert sorted(names) == sorted(f"digits, {result.name}" for result in results)


def test_same_seed_same_figures(results):
    split = long_tailed_digits(DEBIAN_DIR)
    settings = DEMO_DATA["digits"]
    for known in results[:3]:
        budget = 1.0 if known.method == FULL else BUDGET
        run = DemoRun(known.method, budget, settings.learning_rate(known.method), NUM_EPOCHS, known.seed)
        again = train(settings, split, run)
        assert (again.curve, again.keep_rate) == (known.curve, known.keep_rate)


def test_demo_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "new" / "out"
    words = ["--data", "digits-balanced", "--epochs", "2", "--budget", "1", "--seeds", "1", "--wandb", "off"]
    assert main(["demo", *words, "--policy", "random", "--policy", "seta", "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "random, 100%" in printed
    assert "seta, 100%" in printed
    assert "prioritized" not in printed
    assert DEMO_DATA["digits-balanced"].caveat.split(":")[0] in printed
    assert [path.name for path in out.iterdir()] == [PLOT_NAME]


def test_rates_that_were_not_chosen_are_told_of(tmp_path, capsys):
    run_demo("digits", policies=["random"], num_seeds=1, num_epochs=8, wandb_mode="off", out=tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "No rate was chosen for random, which took that of uniform" in printed
    assert "for 24 epochs at a budget of 25%" in printed


def test_wandb_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install" in one_line_error(capsys, "demo", "--wandb", "offline", "--out", str(tmp_path))
    run_demo("digits", policies=[], num_seeds=1, num_epochs=8, out=tmp_path)
    assert "W&B is not installed" in capsys.readouterr().out


def test_wandb_online_without_an_account(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no stored key
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "--wandb offline" in one_line_error(capsys, "demo", "--wandb", "online", "--out", str(tmp_path))


# ---- data and settings


def test_long_tailed_digits_are_apart_from_what_is_measured_on():
    chosen, final = (long_tailed_digits(DEBIAN_DIR, choosing=choosing) for choosing in (True, False))
    images, labels = final.train.tensors
    assert images.shape == (NUM_TRAIN, 1, 8, 8)
    assert labels.bincount().tolist() == [112, 80, 57, 41, 29, 21, 15, 10, 7, 5]
    assert torch.equal(images, chosen.train.tensors[0])
    assert final.held_out.tensors[1].bincount().tolist() == [40] * 10
    assert chosen.held_out.tensors[1].bincount().tolist() == [24] * 10
    parts = [{image.numpy().tobytes() for image in part} for part in (images, *_images(chosen, final))]
    assert len(set.union(*parts)) == sum(map(len, parts))


def _images(*splits):
    return [split.held_out.tensors[0] for split in splits]


@pytest.mark.parametrize("data", DEMO_DATA)
def test_policies_and_rates_of_all_data_are_there(data):
    settings = DEMO_DATA[data]
    assert set(settings.policies) | set(settings.policy_options) <= set(POLICIES)
    assert settings.num_epochs % settings.curve_interval(settings.num_epochs) == 0
    assert settings.num_epochs // settings.curve_interval(settings.num_epochs) <= settings.num_points
    for name, options in settings.policy_options.items():
        POLICIES[name](**options)


def test_rates_of_covtype_are_those_of_the_benchmark_of_rare_events():
    settings = DEMO_DATA["covtype"]
    for method in (FULL, UNIFORM, *POLICIES_SHOWN):
        options = settings.policy_options.get(method, {})
        spec = method + ":" * bool(options) + ",".join(f"{name}={value}" for name, value in options.items())
        (rate,) = {
            row["learning_rate"]
            for row in rows_of("rare_events")
            if (row["phase"], row["dataset"], row["method"], row["epochs"]) == ("final", "covtype-5", spec, 12)
            and row["budget"] in (1.0, settings.budget)
            and row["batch_size"] == settings.batch_size
        }
        assert settings.learning_rate(method) == rate, method


def test_rare_events_are_trained_on_and_measured_by_average_precision(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    is_rare = torch.rand(3000, generator=generator) < 0.05
    features = torch.randn(3000, 6, generator=generator) + 2 * is_rare[:, None]
    split = split_events(features.numpy(), is_rare.numpy(), choosing=False)
    assert isinstance(split, EventSplit)
    settings = DEMO_DATA["covtype"]
    for method in (FULL, "prioritized"):
        result = train(settings, split, DemoRun(method, 1.0 if method == FULL else 0.5, 0.1, 6, 0))
        assert result.value > 0.8
        assert len(result.curve) == 6
    assert result.keep_rate < 0.6


def test_average_precision_is_of_all_validation_batches():
    module = EventClassifier(torch.nn.Identity(), 0.1)
    logged = {}
    module.log_dict = logged.update
    for batch in torch.tensor([[[0.0, 2.0], [0.0, -1.0]], [[0.0, 3.0], [0.0, 1.0]]]):
        module.validation_step((batch, torch.tensor([1, 0])), 0)
    module.on_validation_epoch_end()
    assert {name: float(value) for name, value in logged.items()} == {"val_average_precision": 1.0}


@pytest.mark.parametrize(("size", "stem_stride"), [(8, 1), (28, 2)])
def test_network_takes_the_images_of_both_data_sets(size, stem_stride):
    assert small_resnet(stem_stride)(torch.rand(2, 1, size, size)).shape == (2, 10)


def test_balanced_digits_are_the_whole_set():
    assert [len(part) for part in digits(DEBIAN_DIR)] == [1437, 360]


@pytest.mark.skipif(not DEBIAN_DIR.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path):
    split = DEMO_DATA["fashion-mnist"].load(tmp_path)
    assert (len(split.train), len(split.held_out)) == (60_000, 10_000)
    assert split.train.tensors[1].bincount().tolist() == [6000] * 10
