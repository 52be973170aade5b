from __future__ import annotations

import shutil

import pytest

from benchmarks.common.apt import PrivateApt

LIST = """Package: one
Description-md5: 0123
Description-en: First line
 Second line
 .
 Third line

Package: two
Section: misc
"""


needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")


@needs_apt
def test_stanzas_keep_the_lines_of_a_field(tmp_path):
    (tmp_path / "list").write_text(LIST)
    first, second = PrivateApt(tmp_path).stanzas(tmp_path / "list")
    assert first == {
        "Package": "one",
        "Description-md5": "0123",
        "Description-en": "First line\n Second line\n .\n Third line",
    }
    assert second == {"Package": "two", "Section": "misc"}


@needs_apt
def test_lists_are_looked_for_in_the_folder_alone(tmp_path):
    assert PrivateApt(tmp_path / "new", ("de", "en")).index_files("Packages") == []


@needs_apt
def test_a_package_that_no_source_has_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"no-such-package could not be fetched .*: E: Unable to locate package"):
        PrivateApt(tmp_path).download(["no-such-package"])


def test_without_apt_it_says_where_the_data_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="this machine has no apt; run on Debian or Ubuntu"):
        PrivateApt(tmp_path)
