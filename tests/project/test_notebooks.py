"""What the committed notebooks show; `make notebooks` runs them."""

import ast
import base64
import importlib
import json

import pytest

from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITHOUT_PICTURES = {"04_your_own_assistant.ipynb"}


def outputs_of(path):
    return [
        output for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for output in cell.get("outputs", ())
    ]


def test_all_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_committed_with_pictures_and_small(path):
    outputs = outputs_of(path)
    assert outputs
    assert path.stat().st_size < 250_000
    assert any("image/png" in output.get("data", {}) for output in outputs) != (path.name in WITHOUT_PICTURES)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_nothing_of_the_machine_is_in_them(path):
    text = path.read_text(encoding="utf-8")
    for trace in ("/home/", "/root", "/tmp/", "site-packages", "iopub"):
        assert trace not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_was_run_in_order(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_the_readmes_picture_is_the_second_notebooks():
    picture = base64.b64encode((NOTEBOOKS[1].parent / "what_gets_filtered.png").read_bytes()).decode()
    pictures = [
        output["data"]["image/png"] for output in outputs_of(NOTEBOOKS[1]) if "image/png" in output.get("data", {})
    ]
    assert picture in ["".join(one.split()) for one in pictures]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_they_import_of_the_package_is_there(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module.startswith("lightning_autoassist")]
    assert own
    for node in own:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), node.module
