"""Commands that need no torch do not wait for it, and the package's names are there nevertheless."""

import ast
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_autoassist

MAX_SECONDS = 0.3
MEASURE = """
import json, os, subprocess, sys
done = subprocess.run([sys.executable, "-m", "lightning_autoassist", *sys.argv[1:]], capture_output=True, text=True)
spent = os.times()
print(json.dumps([done.returncode, spent.children_user + spent.children_system, done.stdout, done.stderr]))
"""


def python(code, *words):
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["demo", "--help"], 0),
        (["check", "--help"], 0),
        (["compare", "--help"], 0),
        (["instances", "--help"], 0),
        (["instances", "no-such-folder"], 2),
        ([], 2),
        (["demo", "--budget", "2"], 2),
        (["check"], 2),
        (["check", "nowhere.py:Model"], 2),
        (["compare", "no-such-folder"], 2),
        (["compare", ".", "--group-by", "a,,b"], 2),
    ],
)
def test_words_are_answered_in_little_time(words, code):
    seconds = []
    for _ in range(5):  # the best of some: the machine has other things to do
        returned, spent, out, error = json.loads(python(MEASURE, *words))
        assert returned == code
        assert "Traceback" not in error
        assert out if code == 0 else error.count("\n") == 1
        seconds.append(spent)
        if spent < MAX_SECONDS:
            return
    pytest.fail(f"{min(seconds):.2f} s of CPU")


def test_a_file_is_listed_without_running_it(tmp_path):
    file = tmp_path / "train.py"
    file.write_text("import pytorch_lightning as pl\nclass Net(pl.LightningModule): ...\nraise SystemExit(7)\n")
    returned, spent, _, error = json.loads(python(MEASURE, "check", str(file)))
    assert (returned, "train.py:Net" in error) == (2, True)
    assert spent < 1  # torch alone takes longer


def test_the_package_alone_imports_no_torch():
    code = "import sys, lightning_autoassist; print(sorted({'torch', 'numpy', 'pytorch_lightning'} & set(sys.modules)))"
    assert python(code).strip() == "[]"


def test_every_public_name_is_there_and_is_what_its_module_has():
    code = """
from lightning_autoassist import *
import lightning_autoassist
for name in lightning_autoassist.__all__:
    assert eval(name) is getattr(lightning_autoassist, name), name
    assert name in dir(lightning_autoassist)
for name in lightning_autoassist._MODULE_OF:
    assert getattr(lightning_autoassist, name) is not None
from lightning_autoassist.filtering.policies.registry import POLICIES
print(len(lightning_autoassist.__all__), POLICIES is lightning_autoassist.POLICIES)
"""
    assert python(code).split() == [str(len(lightning_autoassist.__all__)), "True"]


@pytest.mark.parametrize("name", ["AutoAssistCalback", "_private", "__wrapped__", "no.such"])
def test_names_that_are_not_there_are_missed(name):
    with pytest.raises(AttributeError, match="has no attribute"):
        getattr(lightning_autoassist, name)


def test_submodules_are_there_without_an_import_of_their_own():
    assert python("import lightning_autoassist as la; print(la.cli.__name__)").strip() == "lightning_autoassist.cli"


def test_classes_are_pickled_by_their_names():
    assert pickle.loads(pickle.dumps(lightning_autoassist.UniformPolicy)) is lightning_autoassist.UniformPolicy


def test_a_type_checker_is_told_the_same_names():
    """It sees the imports that are for it alone, and not the function that would answer to any name."""
    tree = ast.parse(Path(lightning_autoassist.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING", "not TYPE_CHECKING"]
    imports = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom) and "autoassist" in node.module]
    told = {}
    for node in imports:
        module, names = node.module.removeprefix("lightning_autoassist."), [alias.name for alias in node.names]
        for name in importlib.import_module(node.module).__all__ if names == ["*"] else names:
            told.setdefault(name, set()).add(module)
    faces = {face: importlib.import_module(f"lightning_autoassist.{face}") for face in lightning_autoassist._FACES}
    known = {name: face for face, module in faces.items() for name in module.__all__} | lightning_autoassist._MODULE_OF
    assert told.keys() == known.keys()
    assert {name for name, module in known.items() if module not in told[name]} == set()
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]


@pytest.mark.filterwarnings("ignore")  # of what Lightning uses of jsonargparse, new versions deprecate some
def test_lightning_cli_finds_classes_by_their_paths():
    jsonargparse = pytest.importorskip("jsonargparse")
    from lightning_autoassist import AutoAssistCallback, Policy

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=AutoAssistCallback)
    parser.add_argument("--policy", type=Policy)
    words = ["--callback=lightning_autoassist.AutoAssistCallback", "--callback.lag=2"]
    found = parser.instantiate_classes(parser.parse_args([*words, "--policy=lightning_autoassist.UniformPolicy"]))
    assert found.callback.lag == 2
    assert isinstance(found.policy, lightning_autoassist.UniformPolicy)


def test_every_assistant_goes_by_its_name_however_little_was_imported():
    code = (
        "from lightning_autoassist.filtering.callback import AutoAssistCallback\n"
        "for name in ('logistic', 'memory', 'hybrid', 'mlp', 'text'): AutoAssistCallback('autoassist', name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
