"""Files and functions stay short enough to be read at once, and no folder of the package is left out of a wheel."""

import ast
import statistics

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "lightning_autoassist"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION, MAX_MEDIAN = 400, 40, 7
# These are hooks: what they do stands elsewhere.
HOOKS, MAX_HOOKS = ("filtering/callback.py", "filtering/data/data_module.py"), 250

# Why each may be longer. One that no longer has to be here fails, too.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "filtering/sampling/token_batches.py": "a constructor with a check for each argument",
}


def named(path):
    return path.relative_to(PACKAGE).as_posix()


def lengths(path):
    """Name and number of lines of each function, from its ``def`` to its end."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(function.name, function.end_lineno - function.lineno + 1) for function in functions]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_sizes(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    too_long = [f"{name}: {length} lines" for name, length in lengths(path) if length > MAX_FUNCTION]
    assert (num_lines > MAX_LINES) == (named(path) in LONG_FILES)
    assert too_long == [] if named(path) not in LONG_FUNCTIONS else too_long


@pytest.mark.parametrize("name", HOOKS)
def test_callback_and_data_module_are_hooks(name):
    assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) < MAX_HOOKS


def test_functions_are_short_in_the_median():
    assert statistics.median(length for path in FILES for _, length in lengths(path)) <= MAX_MEDIAN


def test_each_folder_is_a_package():
    assert [path for path in FILES if not (path.parent / "__init__.py").exists()] == []
