"""The comparison: its figures are those of the logs, whatever logger wrote them, and strangers' runs do no harm."""

import json
import math
import re
import struct
import time
import zlib

import numpy as np
import psutil
import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.cli import main
from lightning_autoassist.compare.comparison import compare
from lightning_autoassist.compare.curves import curve_of, mean_curve
from lightning_autoassist.compare.groups import CompareError
from lightning_autoassist.compare.logged_runs import LoggedRun, Row, RunError
from lightning_autoassist.compare.page import write_page
from lightning_autoassist.compare.picture import draw
from lightning_autoassist.compare.readers import _from_json, read_runs, read_wandb_file
from lightning_autoassist.compare.tables import as_text
from lightning_autoassist.pages.html import as_json
from tests.command_line.test_cli import one_line_error
from tests.helpers.made_runs import NASTY, nasty_runs, run_of
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.runs import BATCH_SIZE, BUDGET, NUM_EPOCHS, NUM_INSTANCES, train

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")

NUM_BATCHES = NUM_INSTANCES // BATCH_SIZE


def csv_logger(folder):
    return CSVLogger(folder, name="", version="run")


def tensorboard_logger(folder):
    return TensorBoardLogger(folder, name="", version="run")


def wandb_logger(folder):
    folder.mkdir()
    return WandbLogger(save_dir=folder, mode="offline", name="run", settings=wandb.Settings(silent=True, console="off"))


LOGGERS = {"csv": csv_logger, "tensorboard": tensorboard_logger, "wandb": wandb_logger}


@pytest.fixture(scope="module", params=LOGGERS)
def logged(request, tmp_path_factory):
    """A filtered and a plain run: their folders, and what was seen while they ran."""
    root = tmp_path_factory.mktemp(request.param)
    watches = {}
    for name, policy in (("filtered", "autoassist"), ("plain", None)):
        logger = LOGGERS[request.param](root / name)
        watches[name] = train(logger, policy, **{"val_check_interval": 0.5} if policy is None else {})
        wandb.finish()
    wandb.teardown()
    return root, watches


def read(place, name):
    return [LoggedRun(name, run.source, run.rows, run.config) for run in read_runs(str(place))]


# ---- the figures are the logs'


def test_figures_are_those_of_the_run(logged):
    root, watches = logged
    comparison = compare([*read(root / "plain", "plain"), *read(root / "filtered", "filtered")], baseline="plain")
    assert (comparison.metric, comparison.mode) == ("val_loss", "min")
    plain, filtered = (group.runs[0] for group in comparison.groups)
    for figures, name in ((plain, "plain"), (filtered, "filtered")):
        seen = watches[name].seen
        assert figures.updates == seen[-1]["updates"]
        assert figures.final == pytest.approx(seen[-1]["value"], rel=1e-6)
        assert figures.best == pytest.approx(min(at["value"] for at in seen), rel=1e-6)
    assert plain.updates == NUM_EPOCHS * NUM_BATCHES
    assert plain.instances is None
    assert filtered.instances == watches["filtered"].num_instances
    assert comparison.saving(comparison.groups[1], "updates") == pytest.approx(1 - BUDGET)
    assert comparison.target == pytest.approx(plain.final)


def test_curves_are_those_of_the_run(logged):
    root, watches = logged
    for name in ("filtered", "plain"):
        (run,) = read_runs(str(root / name))
        curve = curve_of(run, "val_loss", batch_size=BATCH_SIZE)
        for axis in ("updates", "instances"):
            np.testing.assert_array_equal(getattr(curve, axis), [at[axis] for at in watches[name].seen])
        np.testing.assert_allclose(curve.values, [at["value"] for at in watches[name].seen], rtol=1e-6)


def test_seconds_of_training_are_logged_beside_the_metric(logged):
    root, _ = logged
    (run,) = read_runs(str(root / "filtered"))
    curve = curve_of(run, "val_loss")
    assert np.all(np.diff([0, *curve.seconds]) > 0)
    logged_seconds = [row.values["autoassist/seconds"] for row in run.rows if "val_loss" in row.values]
    np.testing.assert_array_equal(curve.seconds, logged_seconds)


def test_target_is_where_the_metric_first_reaches_it(logged):
    root, watches = logged
    seen = watches["filtered"].seen
    target = seen[1]["value"] + 1e-6
    figures = compare(read_runs(str(root / "filtered")), target=target).groups[0].runs[0]
    first = next(at for at in seen if at["value"] <= target)
    assert figures.updates_to_target == first["updates"]
    assert 0 < figures.seconds_to_target <= figures.seconds
    out_of_reach = compare(read_runs(str(root / "filtered")), target=-1.0).groups[0].runs[0]
    assert out_of_reach.updates_to_target is out_of_reach.seconds_to_target is None


def test_printed_table_has_the_logs_numbers(logged, capsys, tmp_path):
    root, watches = logged
    words = [f"plain={root / 'plain'}", f"filtered={root / 'filtered'}", "--baseline", "plain", "--batch-size", "10"]
    assert main(["compare", *words, "--out", str(tmp_path / "out")]) == 0
    cost, until, *_ = (
        [re.split(r"  +", line) for line in part.splitlines()] for part in capsys.readouterr().out.split("\n\n")
    )
    headings, reached = cost[1], {line[0]: dict(zip(cost[1], line, strict=True)) for line in cost[3:5]}
    assert headings[0] == "run"
    for name, watch in watches.items():
        last = watch.seen[-1]
        assert reached[name]["val_loss at the end"] == f"{last['value']:.4g}"
        assert reached[name]["updates"] == f"{last['updates']:,}"
        assert reached[name]["instances"] == f"{last['instances']:,}"
    assert reached["filtered"]["saved updates"] == "+40.0%"
    assert until[0] == [f"Until val_loss reached {watches['plain'].seen[-1]['value']:.4g}"]
    target = watches["plain"].seen[-1]["value"]
    first = next(at["updates"] for at in watches["plain"].seen if at["value"] <= target + 1e-9)
    assert dict(zip(until[1], until[3], strict=True))["updates"] == f"{first:,}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.html", "compare.png", "compare.svg"]


def test_json_holds_every_figure(logged, capsys, tmp_path):
    root, watches = logged
    assert main(["compare", str(root), "--json", "--out", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    runs = [run for group in figures["groups"] for run in group["runs"]]
    assert {run["updates"] for run in runs} == {watch.seen[-1]["updates"] for watch in watches.values()}


def test_mid_epoch_validation_lies_between_the_epochs_ends(tmp_path):
    watch = train(csv_logger(tmp_path / "run"), val_check_interval=4)
    (run,) = read_runs(str(tmp_path / "run"))
    curve = curve_of(run, "val_loss")
    assert curve.updates.tolist() == [at["updates"] for at in watch.seen]
    assert curve.instances.tolist() == [at["instances"] for at in watch.seen]
    assert len(watch.seen) == 3 * NUM_EPOCHS


class SlowValidation(pl.Callback):
    """Takes its time in validation, and the time of the run with and without it."""

    def on_train_start(self, *args):
        self.begin, self.slept = time.perf_counter(), 0.0

    def on_validation_batch_end(self, *args):
        begin = time.perf_counter()
        time.sleep(0.2)
        self.slept += time.perf_counter() - begin

    def on_train_end(self, *args):
        self.training = time.perf_counter() - self.begin - self.slept


def test_seconds_leave_validation_out(tmp_path):
    callback = AutoAssistCallback()
    data = AutoAssistDataModule(ClustersData(NUM_INSTANCES, BATCH_SIZE), budget=BUDGET)
    clock = SlowValidation()
    trainer(max_epochs=NUM_EPOCHS, callbacks=[callback, clock]).fit(Classifier(), datamodule=data)
    assert clock.slept > NUM_EPOCHS * 3 * 0.19
    assert 0 < callback.summary()["seconds"] < clock.training + 0.1


# ---- groups


def test_mean_and_spread_over_seeds():
    runs = [run_of("a", [0.5, 0.8]), run_of("a", [0.6, 0.9]), run_of("b", [0.7, 0.7], seconds=5.0)]
    comparison = compare(runs, baseline="a", target=0.7)
    a, b = comparison.groups
    final = a.statistic("final")
    assert (final.mean, final.spread, final.num_runs) == (
        pytest.approx(0.85),
        pytest.approx(np.std([0.8, 0.9], ddof=1)),
        2,
    )
    assert b.statistic("final").spread is None
    assert comparison.saving(b, "seconds") == pytest.approx(0.5)
    assert comparison.saving(b, "updates_to_target") == pytest.approx(0.5)
    assert "0.85 ± 0.071" in as_text(comparison)


def test_a_target_that_some_seeds_miss_saves_nothing():
    comparison = compare([run_of("a", [0.5, 0.8]), run_of("a", [0.6, 0.9]), run_of("b", [0.9])], baseline="b")
    assert comparison.groups[0].statistic("updates_to_target").num_runs == 1
    assert comparison.saving(comparison.groups[0], "updates_to_target") is None
    assert "(1 of 2)" in as_text(comparison)


def test_groups_by_wandb_group_and_by_setting():
    runs = [run_of(str(n), [0.5], group="g", config={"autoassist": {"policy": {"name": f"p{n % 2}"}}}) for n in (0, 1)]
    assert [group.name for group in compare(runs, group_by="group").groups] == ["g, p0", "g, p1"]
    assert [group.name for group in compare([runs[0], runs[0]], group_by="group").groups] == ["g"]
    by_setting = compare(runs, group_by="autoassist.policy.name")
    assert [group.name for group in by_setting.groups] == ["p0", "p1"]
    with pytest.raises(CompareError, match="no setting lr; it has autoassist"):
        compare(runs, group_by="lr")


def test_a_run_that_diverged_ends_with_nan():
    comparison = compare([run_of("a", [0.5, math.nan])], target=0.4)
    assert math.isnan(comparison.groups[0].runs[0].final)
    assert comparison.groups[0].runs[0].best == 0.5
    assert "nan" in as_text(comparison)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no run"),
        (["logs", "--metric", "val_accuracy"], "no metric val_accuracy; it has .*val_loss"),
        (["logs", "--baseline", "full"], "no run is named full; the baseline may be .*logs"),
        (["logs", "--target", "nan"], "--target: must be a finite number, got nan"),
        ([], "required: RUN"),
    ],
)
def test_errors_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if words and words[0] == "logs":
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "metrics.csv").write_text("step,val_loss\n0,1\n")
    assert re.search(message, one_line_error(capsys, "compare", *words))


def test_projects_without_an_account_or_a_network(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # nobody listens
    assert "entity/project is no folder here" in one_line_error(capsys, "compare", "entity/project")


def test_a_wandb_file_cut_short_is_read_as_far_as_it_goes(tmp_path):
    logger = wandb_logger(tmp_path / "run")
    train(logger)
    wandb.finish()
    wandb.teardown()
    (file,) = (tmp_path / "run").rglob("*.wandb")
    (whole,) = read_runs(str(file))
    assert len(whole.rows) > 5
    content, cut_file = file.read_bytes(), tmp_path / "cut.wandb"
    for length in (len(content) * 2 // 3, 9, 7):
        for rest in (b"", bytes(100)):
            cut_file.write_bytes(content[:length] + (rest if length == 7 else b""))
            cut = read_wandb_file(cut_file)
            assert whole.rows[: len(cut.rows)] == cut.rows
            assert len(cut.rows) < len(whole.rows)


def test_a_wandb_file_of_many_blocks_is_read_whole_and_its_damage_is_told(tmp_path):
    run = wandb.init(dir=tmp_path, mode="offline", settings=wandb.Settings(silent=True, console="off"))
    texts = ["x" * length for length in (1, 40_000, 32_700, 32_761, 100, 70_000)]  # over blocks, and ending near theirs
    for step, text in enumerate(texts):
        run.log({"trainer/global_step": step, "loss": step / 10, "text": text})
    run.finish()
    wandb.teardown()
    (file,) = tmp_path.rglob("*.wandb")
    (whole,) = read_runs(str(file))
    assert whole.columns["loss"].values.tolist() == [step / 10 for step in range(len(texts))]
    content = bytearray(file.read_bytes())
    for place in (len(content) // 2, len(content) - 200):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (tmp_path / "damaged.wandb").write_bytes(damaged)
        with pytest.raises(RunError, match=r"damaged\.wandb is damaged, within its first [\d,]+ bytes"):
            read_wandb_file(tmp_path / "damaged.wandb")


def test_files_that_are_no_runs(tmp_path):
    (tmp_path / "a.wandb").write_bytes(b"\x80\x04pickled")
    with pytest.raises(RunError, match="not a W&B run"):
        read_runs(str(tmp_path / "a.wandb"))
    content = b"\xff\xff\xff"
    header = struct.pack("<IHB", zlib.crc32(content, zlib.crc32(b"\x01")), len(content), 1)
    (tmp_path / "a.wandb").write_bytes(b":W&B\xe1\xbe\x00" + header + content)
    with pytest.raises(RunError, match="damaged"):
        read_runs(str(tmp_path / "a.wandb"))
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n0,\xff\n")
    with pytest.raises(RunError, match="not a CSV file"):
        read_runs(str(tmp_path / "metrics.csv"))
    (tmp_path / "metrics.csv").write_text("step,loss\n0," + "1" * 200_000)
    with pytest.raises(RunError, match="not a CSV file: field larger"):
        read_runs(str(tmp_path / "metrics.csv"))
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="no column step"):
        read_runs(str(tmp_path / "metrics.csv"))


def test_settings_build_no_objects(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val_loss\n0,1\n")
    (tmp_path / "hparams.yaml").write_text(
        "lr: 0.1\nbad: !!python/object/apply:os.system ['touch taken']\nclass: !!python/name:os.system\n"
    )
    (run,) = read_runs(str(tmp_path))
    assert run.config == {"lr": 0.1, "bad": None, "class": None}


def test_json_of_a_thousand_brackets_is_text():
    assert _from_json("[" * 100_000) == "[" * 100_000


# ---- pages


def test_nothing_in_a_run_can_close_the_pages_script(tmp_path):
    runs = nasty_runs()
    write_page(tmp_path / "page.html", compare(runs), runs)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == page.count("</script") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&\u2028") & set(data)
    assert json.loads(data)["groups"][0]["runs"][0]["name"] == NASTY
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert len(page) < 40_000


def test_settings_that_refer_to_themselves_or_grow_are_cut(tmp_path):
    loop, laughs = [], "lol"
    loop.append(loop)
    for _ in range(12):
        laughs = [laughs] * 12
    runs = [run_of("a", [0.5], config={"loop": loop, "laughs": laughs, "long": "x" * 10**6, "x" * 10**6: 1})]
    write_page(tmp_path / "page.html", compare(runs), runs)
    assert len((tmp_path / "page.html").read_text()) < 200_000


def test_curves_of_seeds_have_a_mean_where_they_were_measured_at_the_same_updates():
    runs = [run_of("a", [0.5, 0.7], seconds=10.0), run_of("a", [0.6, 0.9], seconds=20.0), run_of("a", [0.6])]
    first, second, shorter = (curve_of(run, "acc") for run in runs)
    mean = mean_curve([first, second])
    assert mean.values.tolist() == pytest.approx([0.55, 0.8])
    assert mean.errors.tolist() == pytest.approx([0.05, 0.1])  # half of the difference between two values
    assert mean.seconds.tolist() == [15, 30]
    assert mean.updates.tolist() == first.updates.tolist()
    assert mean_curve([first]) is mean_curve([first, shorter]) is None


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("val_loss", "min"), ("loss_val", "min"), ("val/rmse", "min"), ("test.wer", "min"), ("inferred_acc", "max")],
)
def test_losses_and_errors_are_better_when_they_are_low(metric, mode):
    run = LoggedRun("a", "a", (Row(0.0, None, {metric: 1.0}),))
    assert compare([run], metric=metric).mode == mode


@pytest.mark.parametrize(
    ("logged", "chosen"),
    [
        (("val_loss", "val_acc", "val_ap"), "val_ap"),
        (("val/AveragePrecision", "val/accuracy"), "val/AveragePrecision"),
        (("val_loss", "val_map", "train_acc"), "val_map"),
        (("val_loss", "val_mape", "val_f1"), "val_f1"),
        (("val_loss", "val_gap"), "val_loss"),
    ],
)
def test_the_metric_that_is_compared_where_none_is_named(logged, chosen):
    run = LoggedRun("a", "a", (Row(0.0, None, dict.fromkeys(logged, 0.5)),))
    assert compare([run]).metric == chosen


def test_a_baseline_that_diverged_sets_no_target():
    comparison = compare([run_of("a", [0.5, math.nan]), run_of("b", [0.9, 0.9])], baseline="a")
    assert comparison.target is None
    assert "Until" not in as_text(comparison)


def test_json_for_pages_has_no_nan():
    assert json.loads(as_json({"a": [math.nan, math.inf, 1.0]})) == {"a": [None, None, 1.0]}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_take_any_name(tmp_path, suffix):
    runs = [*nasty_runs(), run_of("_hidden 手書き\x1b[31m" + "x" * 200, [0.1, 0.2])]
    path = tmp_path / f"picture.{suffix}"
    draw(path, compare(runs), runs)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n" if suffix == "png" else b"<?xml")
    assert b"<script" not in content


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    table = as_text(compare([run_of("a\x1b[31m\nb", [0.5])]))
    assert "\x1b" not in table
    assert len(table.splitlines()) >= 3


def test_no_process_is_left(logged):
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "wandb" in " ".join(child.cmdline())]
