"""The rows of other people's modules and losses, which are tried in an environment of their own."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from benchmarks.outside import report, trials
from benchmarks.outside.cases import Case, Setup, all_cases, case, loaders, normal

# Found by the first trial; each that is fixed lowers it.
KNOWN_FAULTS = 4


def committed():
    return report.rows_by_case(), list(all_cases())


def test_every_case_has_a_whole_row():
    rows, cases = committed()
    assert report.gaps(rows, cases) == []


def test_no_more_falls_short_than_is_known():
    rows, _ = committed()
    assert len(report.faults(rows)) <= KNOWN_FAULTS


def test_the_page_is_that_of_the_rows():
    rows, _ = committed()
    assert not report.is_stale()
    text = report.PAGE.read_text()
    assert all(f"`{name}`" in text for _, name in rows)


def test_the_check_names_what_is_missing_or_wrong():
    rows, cases = committed()
    key = next(key for key in cases if rows[key]["filtering"] == "on" and rows[key]["losses_equal"])
    name = " ".join(key)

    def told(**changes):
        row = {**rows[key], "error": None, "diagnosis": "on", **changes}
        return [text for text in report.gaps({key: row}, [key]) if "fewer" not in text] + report.faults({key: row})

    assert told() == []
    assert told(bit_equal=False) == [f"{name}: bit_equal is false"]
    assert told(why="") == [f"{name}: why is not filled"]
    assert told(seconds=None) == [f"{name}: seconds is not filled"]
    assert told(error="ValueError: no", bit_equal=None) == [f"{name}: ValueError: no"]
    assert told(steps=1) == [f"{name}: 1 steps where {rows[key]['steps_due']} are due"]
    assert told(losses_equal=False) == [f"{name}: filtering is on, and a captured loss is not the instance's own"]
    assert told(diagnosis="off") == [f"{name}: filtering is on, and the diagnosis says off"]
    assert f"{name}: no row" in report.gaps({each: row for each, row in rows.items() if each != key}, cases)
    assert f"{name}: a row of a case that is not listed" in report.gaps(rows, [each for each in cases if each != key])
    assert report.gaps({key: rows[key]}, [key]) == [f"1 rows, fewer than {report.FEWEST}"]


# ---- the trial itself, on modules of which it is known what it has to find


class Linear(pl.LightningModule):
    """A line, and a loss by what the test wants to see."""

    def __init__(self, loss):
        super().__init__()
        self.net, self.loss = torch.nn.Linear(3, 1), loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0])[:, 0], batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def tried(loss, by_hand=None):
    def build():
        return Setup(lambda: Linear(loss), loaders((normal(3), normal())), by_hand)

    row = trials.try_case(Case("none", "line", "loss", build))
    assert row["error"] is None
    assert row["seconds"] > 0
    return row


def test_a_trial_finds_losses_of_instances():
    row = tried(torch.nn.functional.mse_loss)
    assert (row["bit_equal"], row["bit_equal_captured"], row["finite"], row["splits"]) == (True, True, True, True)
    assert (row["filtering"], row["diagnosis"], row["losses_equal"], row["reference"]) == ("on", "on", True, "alone")
    assert row["steps"] == row["steps_due"] == 15
    assert "mse_loss at test_outside.py" in row["why"]


def test_a_trial_finds_what_is_not_filtered():
    row = tried(lambda guesses, values: -torch.dot(guesses - guesses.mean(), values))
    assert (row["bit_equal"], row["filtering"], row["diagnosis"], row["losses_equal"]) == (True, "off", "off", None)
    assert row["splits"] is None  # an instance alone is its own mean, and has no loss
    assert row["why"].startswith("No per-instance loss was found")
    assert row["why"] in row["news"][0]


def test_a_trial_finds_losses_that_are_not_the_instances_own():
    def others(module, batch):
        return torch.nn.functional.mse_loss(module.net(batch[0])[:, 0], batch[1], reduction="none").flip(0)

    row = tried(torch.nn.functional.mse_loss, others)
    assert (row["filtering"], row["losses_equal"], row["reference"]) == ("on", False, "by hand")


@pytest.mark.parametrize(("factor", "is_equal"), [(1.0, True), (0.25, True), (-1.0, False)])
def test_losses_may_share_a_positive_factor(factor, is_equal):
    own = torch.linspace(1, 2, 40).double()
    row = trials.compared(factor * own, own)
    assert row["losses_equal"] is is_equal
    assert row["factor"] == pytest.approx(factor)
    assert trials.compared(own + 1e-3, own)["losses_equal"] is False


def test_a_case_whose_instances_are_alike_shows_nothing():
    with pytest.raises(RuntimeError, match="all instances have the same loss"):
        trials.compared(torch.ones(40), torch.ones(40).double())


def test_two_cases_of_one_name_are_refused():
    package, name = next(iter(all_cases()))
    with pytest.raises(ValueError, match="has two cases named"):
        case(package, name, "loss")
