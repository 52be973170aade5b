"""Files that `autoassist check` takes: of any name, scripts, parts of packages; and what it says without a name."""

import subprocess
import sys

import pytest

from lightning_autoassist.cli import main
from lightning_autoassist.filtering.named_objects import candidates_in, named
from tests.command_line.test_cli import TRAINING, one_line_error

DATA = """
class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()
"""
OWN_DATA = """
class WithData(Linear):
    def train_dataloader(self):
        return loader()
"""


@pytest.mark.parametrize(
    "name",
    ["my-model.py", "01_train.py", "code.py", "train.v2.py", "a b.py", "json.py", "__main__.py", "class.py", "é.py"],
)
def test_a_file_of_any_name_is_checked(name, tmp_path, capsys):
    import json

    file = tmp_path / name
    file.write_text(TRAINING)
    assert main(["check", f"{file}:Linear", "--data", f"{file}:loader"]) == 0
    assert "Linear: AutoAssistCallback can filter its training" in capsys.readouterr().out
    assert sys.modules["json"] is json


def test_two_files_of_one_name_are_two(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same_name.py").write_text(f"NUMBER = {number}\n")
    assert [named(f"{tmp_path}/{number}/same_name.py:NUMBER") for number in (0, 1, 0)] == [0, 1, 0]


def test_a_script_does_not_run_as_one(tmp_path, capsys):
    file = tmp_path / "a_script.py"
    file.write_text(TRAINING + '\nif __name__ == "__main__":\n    raise RuntimeError("ran")\n')
    assert main(["check", f"{file}:Linear", "--data", f"{file}:loader"]) == 0


def test_a_script_that_reads_its_words_gets_none_of_ours(tmp_path, capsys):
    file = tmp_path / "reads_words.py"
    file.write_text("import argparse, sys\nargparse.ArgumentParser().parse_args()\nWORDS = sys.argv\n")
    words = list(sys.argv)
    assert named(f"{file}:WORDS") == [str(file)]
    assert sys.argv == words
    file = tmp_path / "needs_words.py"
    file.write_text("import argparse\np = argparse.ArgumentParser(exit_on_error=True)\np.exit(3)\n")
    assert 'put what it does as a script under if __name__ == "__main__"' in one_line_error(
        capsys, "check", f"{file}:A"
    )


@pytest.mark.parametrize("folder", ["plain_folder", "my-folder", "v1.2"])
@pytest.mark.parametrize("is_package", [True, False])
def test_relative_and_absolute_imports_of_neighbours(folder, is_package, tmp_path):
    folder = f"{folder}_{is_package}"
    inner = tmp_path / folder / f"inner_{is_package}"
    inner.mkdir(parents=True)
    if is_package:
        (inner / "__init__.py").touch()
        if folder.isidentifier():
            (tmp_path / folder / "__init__.py").touch()
    (tmp_path / folder / "above.py").write_text("A = 1\n")
    (inner / "beside.py").write_text("from ..above import A\nB = A + 1\n")
    also = "also_" + folder.replace("-", "_").replace(".", "_")
    (inner / f"{also}.py").write_text("D = 1\n")
    (inner / "train.py").write_text(
        f"from .beside import B\nfrom ..above import A\nimport {also}\nC = A + B + {also}.D\n"
    )
    assert named(f"{inner / 'train.py'}:C") == 4


def test_a_packages_module_does_not_hide_pythons_own(tmp_path):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("WHOLE = 5\n")
    (package / "types.py").write_text("")
    (package / "train.py").write_text("import types\nFOUND = types.ModuleType.__name__\n")
    code = (
        "from lightning_autoassist.filtering.named_objects import named; "
        f"print(named({str(package / 'train.py')!r} + ':FOUND'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "module" in done.stdout
    assert named(f"{package / '__init__.py'}:WHOLE") == 5


# ---- what a file holds


def test_a_files_candidates_are_listed(tmp_path, capsys):
    file = tmp_path / "listed.py"
    file.write_text(TRAINING + DATA)
    error = one_line_error(capsys, "check", str(file))
    for name in ("Linear", "NeedsAWidth", "Broken", "Opaque"):
        assert f"{file}:{name}" in error
    assert f"with --data {file}:Data" in error
    assert "loader" not in error.replace("dataloader", "")


@pytest.mark.parametrize(
    "source",
    [
        "from lightning.pytorch import LightningModule as LM\nclass Net(LM): ...\n",
        "import lightning\nclass Net(lightning.pytorch.LightningModule): ...\n",
        "import pytorch_lightning as pl\nclass A(pl.LightningModule): ...\nclass Net(A): ...\n",
        "import pytorch_lightning as pl\nBase = pl.LightningModule\nclass Net(Base): ...\n",
        "from tests.helpers.ordinary import Classifier\nclass Net(Classifier): ...\n",
        "from pytorch_lightning import *\nclass Net(LightningModule): ...\n",
        "import pytorch_lightning as pl\nif True:\n    class Net(pl.LightningModule): ...\n",
    ],
)
def test_candidates_are_found_however_they_are_written(source, tmp_path):
    if "lightning.pytorch" in source:
        pytest.importorskip("lightning")
    file = tmp_path / f"written_{abs(hash(source))}.py"
    file.write_text(source + "class Other(Exception): ...\n")
    text = candidates_in(str(file))
    assert f"{file}:Net" in text
    assert "Other" not in text


def test_a_file_without_a_module_says_so(tmp_path, capsys):
    file = tmp_path / "only_data.py"
    file.write_text(TRAINING.partition("class")[0] + "def loader(): ...\n" + DATA)
    assert f"defines no LightningModule, only the data module {file}:Data" in one_line_error(capsys, "check", str(file))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A(:\n", "SyntaxError"),
        ("a = '\0'\n", "null bytes"),
        ("import no_such_one\nclass A(no_such_one.B): ...\n", "No module"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(source, message, tmp_path, capsys):
    file = tmp_path / "broken_file.py"
    file.write_text(source)
    assert message in one_line_error(capsys, "check", str(file))
    assert message in one_line_error(capsys, "check", f"{file}:A")


# ---- without --data


def test_check_without_data_says_what_it_is_checked_on(tmp_path, capsys):
    file = tmp_path / "own_data.py"
    file.write_text(TRAINING + OWN_DATA)
    assert main(["check", f"{file}:WithData"]) == 0
    assert f"No --data was given: {file}:WithData is checked on its own train_dataloader." in capsys.readouterr().out
    error = one_line_error(capsys, "check", f"{file}:Linear")
    assert "has no train_dataloader of its own, so --data must name what it is trained on" in error
