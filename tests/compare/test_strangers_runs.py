"""Strangers' folders: nothing outside of them is read, and nothing of them hangs, fills the memory or escapes."""

import os
import re
import socket
import struct
from pathlib import Path

import pytest

from lightning_autoassist.cli import main
from lightning_autoassist.compare import readers
from lightning_autoassist.compare.comparison import compare
from lightning_autoassist.compare.logged_runs import LoggedRun, Row, RunError
from lightning_autoassist.compare.page import write_page
from lightning_autoassist.compare.picture import draw
from lightning_autoassist.compare.readers import read_runs
from lightning_autoassist.compare.run_places import labels_of, read_all
from lightning_autoassist.compare.shareable import without_paths
from tests.command_line.test_cli import one_line_error

METRICS = "step,val_acc\n9,.5\n19,.6\n"
SECRET = "hunter2-SECRET"


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A folder ``logs`` with one run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return run_folder(tmp_path / "logs")


def run_folder(folder, settings=None):
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS)
    if settings is not None:
        (folder / "hparams.yaml").write_text(settings)
    return folder


def settings_of(policy, budget):
    return f"autoassist:\n  policy: {{name: {policy}}}\n  budget: {budget}\n"


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a socket's path must be short


def make_folder(path):
    path.mkdir()


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk


def make_link(path):
    (path.parent.parent / "mine").write_text(SECRET)
    path.symlink_to(path.parent.parent / "mine")


def make_endless_link(path):
    path.symlink_to("/dev/zero")


# ---- what is no ordinary file


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_huge, make_link, make_endless_link])
@pytest.mark.parametrize("name", ["metrics.csv", "run-a.wandb", "events.out.tfevents.1.host", "hparams.yaml"])
def test_what_is_no_ordinary_file_is_one_line(make, name, logs, capsys):
    for package in {"run-a.wandb": ["wandb"], "events.out.tfevents.1.host": ["tensorboard"]}.get(name, []):
        pytest.importorskip(package)
    (logs / name).unlink(missing_ok=True)
    make(logs / name)
    if name == "hparams.yaml" and "link" in make.__name__:
        assert main(["compare", "logs"]) == 0  # the run is there, its settings are not known
        assert "hparams.yaml is a link, and links are not followed" in capsys.readouterr().out
        assert SECRET not in Path("autoassist-compare/compare.html").read_text()
        return
    error = one_line_error(capsys, "compare", "logs")
    assert re.search(r"is a link|is a named pipe|is a socket|bytes, and at most", error)
    assert SECRET not in error


def test_a_folder_named_as_a_file(logs, capsys):
    (logs / "hparams.yaml").mkdir()
    assert "hparams.yaml is a folder" in one_line_error(capsys, "compare", "logs")


def test_a_link_to_a_folder_is_not_followed_but_told(logs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "latest").symlink_to(logs)
    assert "empty/latest is a link" in one_line_error(capsys, "compare", "empty")


def test_a_link_that_the_user_names_is_followed(logs, tmp_path):
    (tmp_path / "latest").symlink_to(logs)
    (tmp_path / "file.csv").symlink_to(logs / "metrics.csv")
    assert [run.name for run in read_runs("latest")] == ["latest"]
    assert len(read_runs("file.csv")) == 1


def test_a_link_within_the_folder_counts_once(logs):
    (logs / "copy").mkdir()
    (logs / "copy" / "metrics.csv").symlink_to(logs / "metrics.csv")
    assert len(read_runs("logs")) == 1


# ---- files that take too much


def test_a_line_and_a_run_may_be_so_long(logs, monkeypatch, capsys):
    monkeypatch.setattr(readers, "MAX_CSV_LINE", 1000)
    (logs / "metrics.csv").write_text("step,a\n" + "1," * 1000)
    assert "a line of more than 1,000 characters" in one_line_error(capsys, "compare", "logs")
    monkeypatch.setattr("lightning_autoassist.compare.logged_runs.MAX_VALUES", 10)
    (logs / "metrics.csv").write_text("step,a\n" + "1,1\n" * 10)
    assert "has more than 10 logged values" in one_line_error(capsys, "compare", "logs")


def test_many_columns_cost_what_the_lines_hold(logs):
    names = ",".join(f"m{number}" for number in range(200_000))
    (logs / "metrics.csv").write_text(f"step,{names}\n" + "1,0.5\n" * 2_000)
    (run,) = read_runs("logs")
    assert len(run.rows) == 2_000


# ---- settings

MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    "settings",
    [
        "a: 2001-02-30\n",
        "a: 2001-01-01 25:00:00\n",
        "a: " + "9" * 5000,
        "a: 0x" + "f" * 5000,
        "a: 1" + ":59" * 5000,
        "a: 1" + ":59" * 500 + ".5",
        "a: !!int ''\n",
        "a: !!float ''\n",
        "a: !!bool maybe\n",
        "a: !!timestamp soon\n",
        "a: !!int [1]\n",
        "a: " + "[" * 5000,
        "a: " + "[" * 500 + "]" * 500,
        "? {a: b}\n: c\n",
        "a: *missing\n",
        "a: \x1b[31m\n",
        "a: b: c\n",
    ],
)
def test_settings_that_no_loader_takes_are_one_line(settings, logs, capsys):
    (logs / "hparams.yaml").write_text(settings)
    error = one_line_error(capsys, "compare", "logs")
    assert "hparams.yaml is not a YAML file: " in error
    assert len(error) < 1200


@pytest.mark.parametrize(
    "settings",
    [
        "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)),
        MERGE_BOMB,
        "a: &a [*a]\n",
        "a: !!set {" + ", ".join(map(str, range(50_000))) + "}\n",
        "a: !!binary " + "A" * 400_000,
    ],
)
def test_settings_that_grow_are_cut(settings, logs, capsys):
    (logs / "hparams.yaml").write_text(settings)
    assert main(["compare", "logs"]) == 0
    assert Path("autoassist-compare/compare.html").stat().st_size < 300_000
    capsys.readouterr()
    if "lol" in settings:
        assert "too long to tell groups apart" in one_line_error(capsys, "compare", "logs", "--group-by", "a29")


def test_usual_settings_are_read_as_before(logs):
    (logs / "hparams.yaml").write_text(
        "lr: 0.1\nsteps: 1_000\nwhen: 2001-02-03\nname: a\nx: &x [1, 2]\ny: *x\nz: null\n"
    )
    config = read_runs("logs")[0].config
    assert (config["lr"], config["steps"], config["name"], config["y"], config["z"]) == (0.1, 1000, "a", [1, 2], None)
    assert str(config["when"]) == "2001-02-03"


# ---- TensorBoard


def write_event(path, event):
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    with path.open("ab") as file:
        record_writer.RecordWriter(file).write(event)


def scalar(tag, value, step, dims=()):
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    event = event_pb2.Event(step=step, wall_time=1.0)
    entry = event.summary.value.add(tag=tag)
    entry.metadata.plugin_data.plugin_name = "scalars"
    entry.tensor.dtype = 1
    entry.tensor.float_val.append(value)
    for size in dims:
        entry.tensor.tensor_shape.dim.add(size=size)
    return event.SerializeToString()


def test_a_tensor_of_any_size_is_no_scalar(logs):
    (logs / "metrics.csv").unlink()
    file = logs / "events.out.tfevents.1.host"
    write_event(file, scalar("acc", 0.5, 1))
    write_event(file, scalar("huge", 0.5, 1, dims=(10**6, 10**6)))
    (run,) = read_runs("logs")
    assert list(run.columns) == ["acc"]


def test_event_files_that_are_damaged(logs, capsys):
    (logs / "metrics.csv").unlink()
    file = logs / "events.out.tfevents.1.host"
    write_event(file, b"\xff\xff\xff")
    assert "is damaged: DecodeError" in one_line_error(capsys, "compare", "logs")
    file.write_bytes(struct.pack("<QI", 2**40, 0))
    with file.open("r+b") as longer:
        longer.truncate(2**33)
    assert "too large or too many" in one_line_error(capsys, "compare", "logs")


# ---- W&B


def test_a_wandb_record_may_be_so_long(logs, monkeypatch):
    wandb = pytest.importorskip("wandb")
    run = wandb.init(dir=logs, mode="offline", settings=wandb.Settings(silent=True, console="off"))
    run.log({"loss": 0.5, "text": "x" * 200_000})
    run.finish()
    wandb.teardown()
    (file,) = logs.rglob("*.wandb")
    assert read_runs(str(file))[0].columns["loss"].values.tolist() == [0.5]
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 100_000)
    with pytest.raises(RunError, match="a record of more than 100,000 bytes"):
        read_runs(str(file))


# ---- names


def test_no_escape_reaches_the_terminal(tmp_path, monkeypatch, capsys):
    evil = "\x1b[31m\u202e"
    monkeypatch.chdir(tmp_path)
    folder = run_folder(tmp_path / f"run{evil}", '"\\e[31m": 1\n')
    (folder / "metrics.csv").write_text(f"step,acc{evil}\n9,.5\n")
    (folder / "linked").mkdir()
    (folder / "linked" / "metrics.csv").write_text(f"step,acc{evil}\n9,.5\n")
    (folder / "linked" / "hparams.yaml").symlink_to("nowhere")
    words = [["."], [".", "--baseline", evil], [".", "--metric", "no"], [".", "--group-by", "no"], [evil]]
    for options in words:
        main(["compare", *options])
    with pytest.raises(SystemExit):
        main(["compare", "--mode", evil])
    with pytest.raises(SystemExit):
        main(["demo", "--budget", evil])
    printed = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(printed.out + printed.err)
    assert "run\N{REPLACEMENT CHARACTER}[31m" in printed.out
    assert "it has \N{REPLACEMENT CHARACTER}[31m" in printed.err


# ---- once


@pytest.mark.parametrize(
    "again", ["logs", "./logs", "logs/../logs", "latest", "logs/metrics.csv", "ABSOLUTE", "second=logs"]
)
def test_a_folder_that_is_named_twice_counts_once(again, logs, tmp_path, capsys):
    (tmp_path / "latest").symlink_to(logs)
    again = str(logs) if again == "ABSOLUTE" else again
    runs = read_all(["logs", again])
    assert [run.name for run in runs] == ["logs"]
    comparison = compare(runs)
    assert comparison.groups[0].statistic("final").num_runs == 1
    assert any("logs: This run was named twice" in note for note in comparison.notes)


def test_a_folder_within_another_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        run_folder(tmp_path / "logs" / name)
    assert [run.name for run in read_all(["logs", "logs/b"])] == ["logs/a", "logs/b"]
    assert [run.name for run in read_all(["x=logs/b", "logs"])] == ["x", "logs/a"]


# ---- pages to be shared


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/alice/data/cifar 10", "…/cifar 10"),
        ("/home/alice", "~"),
        ("~/data/x", "…/x"),
        ("../alice/x", "…/x"),
        ("C:\\Users\\alice\\x", "…/x"),
        ("D:/data/x", "…/x"),
        ("\\\\server\\share\\x", "…/x"),
        ("file:///home/alice/mlruns", "file:…/mlruns"),
        ("sqlite:////home/alice/x.db", "sqlite:…/x.db"),
        ("cc -I/opt/alice/include -o x", "cc -I…/include -o x"),
        ("a=/mnt/alice/x:/mnt/alice/y", "a=…/x:…/y"),
        ("['/mnt/alice/x', '/mnt/alice/y']", "['…/x', '…/y']"),
        ("runs/me-myself/x", "runs/user/x"),
        ("https://host/a/b and s3://bucket/a/b", "https://host/a/b and s3://bucket/a/b"),
        ("val/acc, 1/2, and/or, a / b, 10:30, N/A", "val/acc, 1/2, and/or, a / b, 10:30, N/A"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_paths_are_cut_to_their_last_part(text, shared, monkeypatch):
    monkeypatch.setenv("LOGNAME", "me-myself")
    assert without_paths(text) == shared


def test_a_page_tells_nothing_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "me-myself")
    monkeypatch.chdir(tmp_path)
    settings = f"data: {tmp_path}/me-myself/data\n{tmp_path}/key: 1\nmany: [{{deep: {tmp_path}/me-myself/x}}]\n"
    folder = run_folder(tmp_path / "me-myself" / "logs", settings)
    (folder / "linked").mkdir()
    (folder / "linked" / "metrics.csv").write_text(METRICS)
    (folder / "linked" / "hparams.yaml").symlink_to("/etc/passwd")
    for words in (
        [str(folder)],
        [str(folder), "--group-by", "name"],
        [
            f"{folder}=.",
        ],
    ):
        monkeypatch.chdir(tmp_path if "=" not in words[0] else folder)
        main(["compare", *words, "--out", str(tmp_path / "out")])
        for name in ("compare.html", "compare.svg"):
            page = (tmp_path / "out" / name).read_text()
            assert str(tmp_path) not in page
            assert "me-myself" not in page
    assert "\\u2026/data" in (tmp_path / "out" / "compare.html").read_text()


def test_groups_by_a_path_are_shared_by_its_last_part(tmp_path):
    rows = (Row(9.0, None, {"acc": 0.5}),)
    runs = [LoggedRun(str(n), f"r{n}", rows, {"data": f"/mnt/disk-of-mine/{n}/train"}) for n in range(2)]
    comparison = compare(runs, group_by="data")
    assert [group.name for group in comparison.groups] == ["/mnt/disk-of-mine/0/train", "/mnt/disk-of-mine/1/train"]
    write_page(tmp_path / "page.html", comparison, runs)
    draw(tmp_path / "page.svg", comparison, runs)
    for name in ("page.html", "page.svg"):
        assert "disk-of-mine" not in (tmp_path / name).read_text()


def test_absolute_folders_are_called_by_what_tells_them_apart(tmp_path, monkeypatch):
    for name in ("x/version_0", "y/version_0", "z"):
        run_folder(tmp_path / name)
    monkeypatch.chdir(tmp_path / "z")
    places = [str(tmp_path / "x/version_0"), str(tmp_path / "y/version_0"), ".", "../x", "nowhere/else"]
    assert labels_of(places) == ["x/version_0", "y/version_0", ".", "x", None]
    assert [run.name for run in read_all(places[:3])] == ["x/version_0", "y/version_0", "z"]


# ---- groups


def runs_of(*kinds, name="a"):
    rows = (Row(9.0, None, {"acc": 0.5}),)
    return [
        LoggedRun(name, f"r{n}", rows, {"autoassist": {"policy": {"name": policy}, "budget": budget}} if policy else {})
        for n, (policy, budget) in enumerate(kinds)
    ]


def names(runs, *keys):
    return [group.name for group in compare(runs, group_by=keys or "name").groups]


def test_policy_and_budget_are_never_merged_unasked():
    assert names(runs_of(("P", 0.6), ("P", 0.6))) == ["a"]
    assert names(runs_of(("P", 0.6), ("P", 0.4), ("P", 0.6))) == ["a, budget 0.6", "a, budget 0.4"]
    assert names(runs_of(("P", 0.6), ("U", 0.6))) == ["a, P", "a, U"]
    assert names(runs_of(("P", 0.6), (None, None))) == ["a, P, budget 0.6", "a, without AutoAssist"]
    runs = runs_of(("P", 0.6), ("P", 1.0), ("U", 1.0))
    assert names(runs, "autoassist.policy.name") == ["P, budget 0.6", "P, budget 1.0", "U"]
    (note,) = [note for note in compare(runs).notes if "apart" in note]
    assert "The runs of a differ in policy or budget" in note


def test_several_keys_tell_groups_apart():
    runs = runs_of(("P", 0.6), ("P", 1.0), ("U", 1.0), ("U", 1.0))
    both = ("autoassist.policy.name", "autoassist.budget")
    assert names(runs, *both) == ["P, 0.6", "P, 1.0", "U, 1.0"]
    assert not [note for note in compare(runs, group_by=both).notes if "apart" in note]


def test_values_with_commas_do_not_merge():
    rows = (Row(9.0, None, {"acc": 0.5}),)
    runs = [LoggedRun("r", "r", rows, {"x": x, "y": y}) for x, y in (("a, b", "c"), ("a", "b, c"))]
    assert len(set(names(runs, "x", "y"))) == 2


def test_keys_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (policy, budget) in enumerate((("P", 0.6), ("P", 1.0), ("U", 1.0))):
        run_folder(tmp_path / "logs" / str(number), settings_of(policy, budget))
    for words in (
        ["--group-by", "autoassist.policy.name,autoassist.budget"],
        ["--group-by", "autoassist.policy.name", "--group-by", "autoassist.budget"],
    ):
        assert main(["compare", "logs", *words, "--baseline", "U, 1.0"]) == 0
        assert "P, 0.6" in capsys.readouterr().out
    words = ["--group-by", "autoassist.policy.name", "--baseline", "P"]
    assert 'may be "P, budget 0.6", "P, budget 1.0", U' in one_line_error(capsys, "compare", "logs", *words)
    assert "must name settings" in one_line_error(capsys, "compare", "logs", "--group-by", "")
