"""Settings from Lightning's ``hparams.yaml``, which may be a stranger's.

The file is read in bounded time and memory. Its size, its nesting and the length of its numbers are limited. Python
objects are not built; None stands for them. ``<<`` is a name like any other, because merging can multiply the content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_autoassist.compare.logged_runs import RunError
from lightning_autoassist.compare.run_files import open_file

FILE_NAME = "hparams.yaml"
MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 2**20, 100, 400


def read_settings(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the settings of the run in a folder.

    Args:
        folder: The folder, which may have a ``hparams.yaml``.

    Returns:
        The settings, which are empty where there is no file, and notes on what was not read.

    Raises:
        RunError: If the file is not a YAML file, or not an ordinary file.
    """
    path = folder / FILE_NAME
    if path.is_symlink():
        return {}, (f"Its {FILE_NAME} is a link, and links are not followed, so its settings are not known.",)
    try:
        with open_file(path, MAX_BYTES) as file:
            text = file.read(MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return {}, ()
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not a YAML file: {error}") from error
    try:
        settings = _parsed(text)
    except Exception as error:  # strangers' dates and tags make the loader raise errors of almost every type
        raise RunError(f"{path} is not a YAML file: {error or type(error).__name__}") from error
    return (settings if isinstance(settings, dict) else {}), ()


def _parsed(text: str) -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, base):  # before loading, which recurses as deep as the file is nested
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")

    class Loader(base):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            pass

        def construct_number(self, node: Any) -> Any:
            if len(node.value) > MAX_DIGITS:
                raise ValueError(f"it holds a number of {len(node.value):,} digits")
            is_whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)

    Loader.add_multi_constructor("", lambda *_: None)
    Loader.add_constructor("tag:yaml.org,2002:merge", Loader.construct_yaml_str)
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    return yaml.load(text, Loader)
