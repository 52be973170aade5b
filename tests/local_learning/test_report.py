"""``autoassist check --local``: where a network would be cut, or why it cannot be."""

from __future__ import annotations

from lightning_autoassist.cli import main

PLACE = "tests.local_learning.test_report"


def run(capsys, name, blocks):
    code = main(["check", f"{PLACE}:{name}", "--data", f"{PLACE}:loader", "--local", blocks])
    return code, capsys.readouterr()


def loader():
    from torch.utils.data import DataLoader

    from tests.helpers.local_learning import images

    return DataLoader(images(64), 16)


def plain():
    from tests.helpers.local_learning import Blocks

    return Blocks()


def skipping():
    from tests.local_learning.test_refusals import Skipping

    return Skipping()


def test_blocks_are_shown_with_bytes_and_parameters(capsys):
    code, printed = run(capsys, "plain", "4")
    assert code == 0
    rows = [line.split() for line in printed.out.splitlines() if line.lstrip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0][1] == "block1.2"
    assert all(int(row[-3].replace(",", "")) > 0 for row in rows)
    assert "saved for backward" in printed.out.splitlines()[-1]


def test_what_leaks_is_an_error_of_one_line(capsys):
    code, printed = run(capsys, "skipping", "4")
    assert code == 2
    assert "can be cut into 3" in printed.err
    assert printed.err.count("\n") == 1
