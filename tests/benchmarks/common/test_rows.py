from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from benchmarks.common.rows import MODULE_OF_SCRIPT, RESULTS, current_command, provenance
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_command_of_every_row_is_one_that_runs_today(path):
    commands = {current_command(json.loads(line)["command"]) for line in path.read_text().splitlines()}
    for python, option, module in (command.split()[:3] for command in commands):
        assert (python, option) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None


def test_options_of_an_old_command_stay_and_a_new_one_is_left_alone():
    old = "python benchmarks/images.py --policy 'proportional:weights=mean' --grid 0.1 0.2"
    new = "python -m benchmarks.images --policy 'proportional:weights=mean' --grid 0.1 0.2"
    assert current_command(old) == current_command(new) == new


@pytest.mark.parametrize(
    ("main", "command"),
    [
        (ModuleSpec("benchmarks.images.__main__", None), "python -m benchmarks.images --epochs 3 'two words'"),
        (ModuleSpec("benchmarks.cost.scale", None), "python -m benchmarks.cost.scale --epochs 3 'two words'"),
        (None, "python script.py --epochs 3 'two words'"),
    ],
)
def test_a_row_names_the_command_by_which_it_was_measured(monkeypatch, main, command):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", main)
    monkeypatch.setattr("sys.argv", ["/somewhere/script.py", "--epochs", "3", "two words"])
    assert provenance()["command"] == command


def test_a_process_of_a_package_names_it(tmp_path):
    """As Python itself begins it."""
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "__main__.py").write_text(
        "from benchmarks.common.rows import command_of_process\nprint(command_of_process())\n"
    )
    command = [sys.executable, "-m", "few", "--quick"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "python -m few --quick\n"


@pytest.mark.parametrize("module", ["benchmarks.report", *MODULE_OF_SCRIPT.values()])
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests import it
def test_every_benchmark_is_a_module_that_runs(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {module} [")
