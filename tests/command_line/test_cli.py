"""The command line: help, errors in one line, exit codes, and where the data come from."""

import gzip
import re
import shlex
import sys

import numpy as np
import pytest
import torch

import lightning_autoassist
from lightning_autoassist.cli import _parser, main
from lightning_autoassist.demo import data as demo_data
from lightning_autoassist.demo.settings import DEMO_DATA


def one_line_error(capsys, *arguments):
    """stderr of a command that fails, whose exit code may be returned or raised."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    return printed.err


def write_idx(path, values):
    """The idx format by hand: type 8, the number of dimensions, each dimension, the values."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_fashion_mnist(folder, num_train=300, num_held_out=100):
    """Files of Fashion-MNIST's names and format: noise, its class in the brightness."""
    generator = np.random.default_rng(0)
    for part, count in (("train", num_train), ("t10k", num_held_out)):
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        noise = generator.integers(0, 20, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", noise + 20 * labels[:, None, None])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


# ---- words


@pytest.mark.parametrize("command", ["demo", "check", "compare", "instances"])
def test_help_has_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert command in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    examples = re.findall(rf"^  (autoassist {command} .*?)(?: +#.*)?$|^  (autoassist {command})  ", text, re.MULTILINE)
    assert len(examples) >= 2
    assert "exits with 0" in text
    for example in filter(None, sum(examples, ())):
        _parser().parse_args(shlex.split(example)[1:])


def test_help_of_the_demo_shows_examples_and_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "autoassist demo --data fashion-mnist" in text
    assert f"{DEMO_DATA['digits'].num_epochs} for digits" in text


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"autoassist {lightning_autoassist.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["deom"], "invalid choice: 'deom'"),
        (["demo", "--data", "mnist"], "digits.*fashion-mnist"),
        (["demo", "--budget", "0"], r"--budget: must be in \(0, 1\], got 0 "),
        (["demo", "--budget", "1.01"], r"--budget: must be in \(0, 1\], got 1.01 "),
        (["demo", "--budget", "nan"], r"--budget: must be in \(0, 1\], got nan "),
        (["demo", "--budget", "half"], r"--budget: must be a number in \(0, 1\], got half "),
        (["demo", "--epochs", "0"], "--epochs: must be 1 or more, got 0 "),
        (["demo", "--epochs", "1.5"], "--epochs: must be a whole number, got 1.5 "),
        (["demo", "--seed", "-1"], "--seed: must be 0 or more, got -1 "),
        (["demo", "--seeds", "0"], "--seeds: must be 1 or more, got 0 "),
        (["demo", "--policy", "uniform"], "invalid choice: 'uniform'"),
        (["demo", "--wandb", "maybe"], "online.*offline.*off"),
    ],
)
def test_wrong_words_end_in_one_line(arguments, message, capsys):
    assert re.search(message, one_line_error(capsys, *arguments))


# ---- data and folders


def test_missing_data_name_both_ways_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_data, "DEBIAN_DIR", tmp_path / "debian")
    a_file = tmp_path / "file"
    a_file.touch()  # no folder can be made below it: nothing is downloaded, with internet or without
    error = one_line_error(capsys, "demo", "--data", "fashion-mnist", "--data-dir", str(a_file / "data"))
    assert str(tmp_path / "debian") in error
    assert "dataset-fashion-mnist" in error
    assert "torchvision" in error
    assert str(a_file / "data") in error


def test_out_that_cannot_be_written(tmp_path, capsys):
    a_file = tmp_path / "file"
    a_file.touch()
    assert "Not a directory" in one_line_error(capsys, "demo", "--out", str(a_file / "out"))


def test_missing_packages_name_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    error = one_line_error(capsys, "demo", "--out", str(tmp_path))
    assert "sklearn" in error
    assert "pip install 'lightning-autoassist[demo]'" in error


def test_fashion_mnist_from_the_debian_folder(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "debian")
    monkeypatch.setattr(demo_data, "DEBIAN_DIR", tmp_path / "debian")
    split = demo_data.fashion_mnist(tmp_path / "nothing here")
    images, labels = split.train.tensors
    assert images.shape == (300, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(split.held_out) == 100
    # Brightness tells the class: images and labels are paired.
    assert torch.equal((images.amin((1, 2, 3)) * 255).round().long() // 20, labels)


def test_fashion_mnist_from_an_earlier_download(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_data, "DEBIAN_DIR", tmp_path / "debian")
    write_fashion_mnist(tmp_path / "data" / "FashionMNIST" / "raw")
    assert len(demo_data.fashion_mnist(tmp_path / "data").train) == 300


def test_digits_hold_out_the_same_fifth_always(tmp_path):
    first, second = demo_data.digits(tmp_path), demo_data.digits(tmp_path)
    assert (len(first.train), len(first.held_out)) == (1437, 360)
    assert all(torch.equal(a, b) for a, b in zip(first.held_out.tensors, second.held_out.tensors, strict=True))
    images, labels = first.train.tensors
    assert images.shape == (1437, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_idx_files_are_read_in_their_shape(shape, tmp_path):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    write_idx(tmp_path / "values.gz", values)
    np.testing.assert_array_equal(demo_data.read_idx(tmp_path / "values.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03ab"), "should hold 3 values after its header, not 2"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01abcd"), "not an idx file of unsigned bytes: it begins with 00 00 0d 01"),
        (gzip.compress(b""), "not an idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc")[:-9], "cut short"),
        (b"<html>not found</html>", "gzip"),
    ],
    ids=["too few values", "floats", "empty", "cut short", "no gzip"],
)
def test_damaged_idx_files_are_refused(content, message, tmp_path):
    (tmp_path / "values.gz").write_bytes(content)
    with pytest.raises(OSError, match=message):
        demo_data.read_idx(tmp_path / "values.gz")


# ---- check

TRAINING = """
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

class Linear(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class NeedsAWidth(Linear):
    def __init__(self, width):
        super().__init__()

class Broken(Linear):
    def training_step(self, batch, batch_idx):
        return self.no_such_layer(batch[0])

class Opaque(Linear):
    def training_step(self, batch, batch_idx):
        return self.net.weight.square().sum()

def loader():
    return DataLoader(TensorDataset(torch.rand(40, 4), torch.arange(40) % 3), batch_size=8)
"""


def test_check_prints_what_is_captured_and_ends_with_0(tmp_path, capsys):
    (tmp_path / "linear_training.py").write_text(TRAINING)
    path = tmp_path / "linear_training.py"
    assert main(["check", f"{path}:Linear", "--data", f"{path}:loader"]) == 0
    printed = capsys.readouterr().out
    assert "Linear: AutoAssistCallback can filter its training" in printed
    assert "cross_entropy at linear_training.py:13" in printed


def test_check_of_kfac_trains_nothing_and_says_what_each_mode_holds_and_sends(tmp_path, capsys):
    path = tmp_path / "kfac_training.py"
    path.write_text(
        TRAINING.replace("torch.nn.Linear(4, 3)", "torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.PReLU())")
    )
    assert main(["check", f"{path}:Broken", "--kfac", "--processes", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "net.0 Linear 1 401 300 1.00 MB" in printed
    assert "Factors take 1.00 MB in float32 in every process." in printed
    # Inverses of 401² + 401 + 300² + 300 numbers, triangles of factors, a gradient of 401 · 300 numbers, of 4 bytes.
    assert "comm_opt 2 1.01 MB 0.50 MB 1.01 MB 0.00 MB" in printed
    assert "mem_opt 2 1.01 MB 0.50 MB 0.00 MB 0.48 MB" in printed
    assert "net.1: a PReLU is none of Linear" in printed


def test_check_ends_with_1_where_filtering_is_off(tmp_path, capsys):
    (tmp_path / "opaque_training.py").write_text(TRAINING)
    path = tmp_path / "opaque_training.py"
    with pytest.raises(SystemExit, match="1"):
        main(["check", f"{path}:Opaque", "--data", f"{path}:loader"])
    assert "Opaque: AutoAssistCallback would train it unfiltered." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Broken", r"AttributeError: 'Broken' object has no attribute 'no_such_layer' \(.*, line \d+\)"),
        ("NeedsAWidth", "missing 1 required positional argument: 'width'"),
        ("loader", "module must be a LightningModule, got a DataLoader"),
        ("LIMIT", "module must be a LightningModule, got the number 3"),
    ],
)
def test_check_of_code_that_fails_is_one_line_and_not_filtering_that_is_off(name, message, tmp_path, capsys):
    path = tmp_path / "failing_training.py"
    path.write_text(TRAINING + "\nLIMIT = 3\n")
    assert re.search(message, one_line_error(capsys, "check", f"{path}:{name}", "--data", f"{path}:loader"))


def test_check_of_a_file_that_is_no_python_is_one_line(tmp_path, capsys):
    path = tmp_path / "unwritten_training.py"
    path.write_text("class Model(:\n")
    assert "SyntaxError" in one_line_error(capsys, "check", f"{path}:Model")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train", "train must be FILE.py:NAME or PACKAGE.MODULE:NAME"),
        ("train.py", "train.py does not exist"),
        ("absent.py:Model", "absent.py does not exist"),
        ("no_such_package:Model", "No module named 'no_such_package'"),
        ("math:Model", "math:Model: module 'math' has no attribute 'Model'"),
    ],
)
def test_check_of_what_is_not_there_is_one_line(path, message, capsys):
    assert message in one_line_error(capsys, "check", path)
