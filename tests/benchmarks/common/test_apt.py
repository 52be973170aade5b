from __future__ import annotations

import importlib
import shutil
import sys

import pytest

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
LIST = """Package: one
Description-md5: 0123
Description-en: First line
 Second line
 .
 Third line

Package: two
Section: misc
"""


@pytest.fixture
def private_apt(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("data.apt").PrivateApt
    for name in ("data", "data.apt"):
        sys.modules.pop(name, None)


needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")


@needs_apt
def test_stanzas_keep_the_lines_of_a_field(private_apt, tmp_path):
    (tmp_path / "list").write_text(LIST)
    first, second = private_apt(tmp_path).stanzas(tmp_path / "list")
    assert first == {
        "Package": "one",
        "Description-md5": "0123",
        "Description-en": "First line\n Second line\n .\n Third line",
    }
    assert second == {"Package": "two", "Section": "misc"}


@needs_apt
def test_lists_are_looked_for_in_the_folder_alone(private_apt, tmp_path):
    assert private_apt(tmp_path / "new", ("de", "en")).index_files("Packages") == []


@needs_apt
def test_a_package_that_no_source_has_is_named(private_apt, tmp_path):
    with pytest.raises(RuntimeError, match=r"no-such-package could not be fetched .*: E: Unable to locate package"):
        private_apt(tmp_path).download(["no-such-package"])


def test_without_apt_it_says_where_the_data_can_be_made(private_apt, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="this machine has no apt; run on Debian or Ubuntu"):
        private_apt(tmp_path)
