"""The walk through one batch, and what folders say of themselves, name files and methods that exist."""

import re

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "lightning_autoassist"
ANATOMY = (ROOT / "docs" / "anatomy-of-one-batch.md").read_text(encoding="utf-8")
FOLDERS = sorted(path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def named_files(text):
    _, _, text = text.partition("paths are relative to `lightning_autoassist/`")
    return set(re.findall(r"\b[a-z_]+(?:/[a-z_]+)*(?:\.py|/(?=[`<\"]))", text))


def test_paths_of_the_walk_exist():
    found = named_files(ANATOMY)
    assert len(found) > 30
    assert [path for path in found if not (PACKAGE / path).exists()] == []


def test_methods_of_the_walk_are_in_their_files():
    found = re.findall(r"`([a-z_/]+\.py)`, `(\w+)`", ANATOMY)
    found += [(path, method) for method, path in re.findall(r"`(\w+)` in\s+`([a-z_/]+\.py)`", ANATOMY)]
    assert len(found) >= 4
    assert [pair for pair in found if f"def {pair[1]}(" not in (PACKAGE / pair[0]).read_text(encoding="utf-8")] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", ANATOMY)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_folders_of_the_package_are_walked_through():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in FOLDERS} - {"compare", "demo", "pages"}
    assert [folder for folder in folders if f"{folder}/" not in ANATOMY] == []


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.parent.name)
def test_a_folder_says_what_is_in_it(path):
    files = re.findall(r"``([a-z_]+\.py)``", path.read_text(encoding="utf-8"))
    assert files
    assert [file for file in files if not (path.parent / file).exists()] == []
