"""Objects that a command line names: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``.

A file is run as ``python -m`` runs one of its package, but under its own name: what stands under
``if __name__ == "__main__"`` does not run. It may have any name, and may import its neighbours either way.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODULE, DATA_MODULE = "LightningModule", "LightningDataModule"
# Classes of these packages are what their names say.
_KNOWN_PACKAGES = {*sys.stdlib_module_names, "lightning", "lightning_fabric", "numpy", "pytorch_lightning", "torch"}
_KNOWN_PACKAGES |= {"torchmetrics", "torchvision"}
_imported: dict[Path, types.ModuleType] = {}


class NamingError(Exception):
    """What was named is not there; the message says what is."""


def module_and_data(module: str, data: str | None) -> tuple[Any, Any]:
    """The module and what it is to be trained on, None for the module's own loaders.

    Args:
        module: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``.
        data: Another such name, or None.

    Raises:
        NamingError: If one is not there.
    """
    for path in (module, data):
        if path is not None:
            _check_path(path)
    found = None if data is None else named(data)
    return named(module), found


def named(path: str) -> Any:
    """The object at a path, called where it is a class or a function.

    Args:
        path: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``.

    Raises:
        NamingError: If it is not there.
    """
    place, name = _check_path(path)
    with _as_a_script(place):
        try:
            owner = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            found = getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise NamingError(f"{path}: {error}{_where_inside(error)}") from error
        except SystemExit as end:
            raise NamingError(
                f"{place} ended the process with {end.code!r} when it was imported: put what it does as a script under "
                'if __name__ == "__main__"'
            ) from end
        return found() if inspect.isclass(found) or inspect.isfunction(found) else found


def candidates_in(place: str) -> str:
    """A line on which modules and data modules a file holds.

    Args:
        place: The file.

    Raises:
        NamingError: If there is no such file, or it is no Python.
    """
    file = _existing(place)
    found = _candidates(file)
    modules, data = ([f"{place}:{name}" for name, kind in found if kind == wanted] for wanted in (MODULE, DATA_MODULE))
    if not modules:
        in_it = f", only the data module {', '.join(data)}" if data else ""
        return f"{place} defines no LightningModule{in_it}; name the file with one as FILE.py:NAME"
    with_data = f", with --data {' or '.join(data)}" if data else ""
    return f"name what to check: {' or '.join(modules)}{with_data}"


def import_file(file: Path) -> types.ModuleType:
    """Import a file under a name that clashes with no other module.

    Args:
        file: The file, of any name that ends with ``.py``; relative imports are of its neighbours.
    """
    file = file.resolve()
    if file in _imported:
        return _imported[file]
    root, parents = _package_of(file)
    sys.path.insert(0, str(root))
    if parents:  # last: a package's logging.py must not stand before Python's own
        sys.path.append(str(file.parent))
    for number in range(1, len(parents) + 1):
        _import_package(".".join(parents[:number]), root.joinpath(*parents[:number]))
    is_package = file.stem == "__init__"
    name = ".".join(parents if is_package else [*parents, _module_name(file, is_top=not parents)])
    module = sys.modules[name] if name in sys.modules else _run(name, file)
    _imported[file] = module
    return module


def _run(name: str, file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def place_of_error(error: BaseException) -> str:
    """File and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"


def _where_inside(error: Exception) -> str:
    """Where in the user's own files an import failed; nothing for a name that is not there."""
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    is_own = frames[-1] == Path(__file__) or frames[-1].parent.name == "importlib" or "<" in frames[-1].name
    return "" if is_own else f" ({place_of_error(error)})"


def _check_path(path: str) -> tuple[str, str]:
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name:
        if path.endswith(".py"):
            raise NamingError(candidates_in(path))
        raise NamingError(f"{path} must be FILE.py:NAME or PACKAGE.MODULE:NAME")
    if place.endswith(".py"):
        _existing(place)
    return place, name


def _existing(place: str) -> Path:
    file = Path(place)
    if not file.is_file():
        raise NamingError(f"{place} does not exist")
    return file


@contextmanager
def _as_a_script(place: str) -> Iterator[None]:
    """The folder to import from, and the words that a script sees: its own name, and none of this command's."""
    words = sys.argv
    sys.argv = [place]
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.argv = words


def _package_of(file: Path) -> tuple[Path, list[str]]:
    """The folder to import from, and the packages from there to the file; none for a file that stands alone."""
    folder, parents = file.parent, list[str]()
    num_levels = _relative_levels(file)
    while (folder / "__init__.py").is_file() or len(parents) < num_levels:
        if folder.parent == folder:
            break
        parents.insert(0, folder.name)
        folder = folder.parent
    return folder, parents


def _relative_levels(file: Path) -> int:
    """How many folders up the file's relative imports go."""
    return max((node.level for node in ast.walk(_tree_of(file)) if isinstance(node, ast.ImportFrom)), default=0)


def _tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), filename=str(file))


def _module_name(file: Path, *, is_top: bool) -> str:
    """The file's own name, unless another module has it, such as Python's ``code``, or it is none."""
    is_free = not is_top or (file.stem not in sys.stdlib_module_names and file.stem not in sys.modules)
    return file.stem if file.stem.isidentifier() and is_free else "_checked_" + re.sub(r"\W", "_", file.stem)


def _import_package(name: str, folder: Path) -> None:
    if name not in sys.modules and (folder / "__init__.py").is_file() and folder.name.isidentifier():
        importlib.import_module(name)
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    paths = [Path(path).resolve() for path in getattr(sys.modules[name], "__path__", [])]
    if folder not in paths:
        raise NamingError(f"{folder} cannot be imported as {name}: another package of that name is installed")


# ---- what a file holds


def _candidates(file: Path) -> list[tuple[str, str]]:
    """Names and kinds of the file's modules and data modules, without running it where that can be told."""
    tree = _tree_of(file)
    origins = dict(_imported_names(tree))
    kinds: dict[str, str | None] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found = [_kind(base, origins, kinds) for base in node.bases]
            if "?" in found:
                return _imported_candidates(file)
            kinds[node.name] = next((kind for kind in found if kind), None)
    return [(name, kind) for name, kind in kinds.items() if kind] or _imported_candidates(file)


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that the file's imports bind, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname or each.name.partition(".")[0], each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            place = "." * node.level + (node.module or "")
            yield from ((each.asname or each.name, f"{place}.{each.name}") for each in node.names)


def _kind(base: ast.expr, origins: dict[str, str], kinds: dict[str, str | None]) -> str | None:
    """Which kind of class a base makes, None for neither, ``"?"`` where only running the file can tell."""
    while isinstance(base, ast.Subscript):
        base = base.value
    path = ast.unparse(base)
    if path in kinds:
        return kinds[path]
    first = path.partition(".")[0]
    if hasattr(builtins, first):
        return None
    last = path.rpartition(".")[2] if "." in path else origins.get(first, "").rpartition(".")[2]
    if origins.get(first, "").partition(".")[0] not in _KNOWN_PACKAGES:
        return "?"
    return last if last in {MODULE, DATA_MODULE} else None


def _imported_candidates(file: Path) -> list[tuple[str, str]]:
    from lightning_autoassist.trainer_support.variants import DATA_MODULE_TYPES, MODULE_TYPES

    with _as_a_script(str(file)):
        try:
            module = import_file(file)
        except (Exception, SystemExit) as error:
            raise NamingError(f"{file}: {type(error).__name__}: {error} ({place_of_error(error)})") from error
    found = []
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            kind = MODULE if issubclass(value, MODULE_TYPES) else DATA_MODULE
            if issubclass(value, (*MODULE_TYPES, *DATA_MODULE_TYPES)):
                found.append((name, kind))
    return found
