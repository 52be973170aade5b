"""Random configurations, interrupted and resumed; ``tests.helpers.random_runs`` makes any number of them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.helpers.random_runs import configuration, problems

NUM_CONFIGURATIONS = 40


@pytest.mark.parametrize("number", range(NUM_CONFIGURATIONS))
def test_everything_holds_in_a_random_configuration(number):
    config = configuration(number)
    assert not problems(config), asdict(config)


def test_configurations_differ_and_are_named_by_their_numbers():
    drawn = [configuration(number) for number in range(NUM_CONFIGURATIONS)]
    assert drawn == [configuration(number) for number in range(NUM_CONFIGURATIONS)]
    for field in (
        "data",
        "order",
        "num_workers",
        "policy",
        "assistant",
        "reweighting",
        "update",
        "precision",
        "accumulate",
    ):
        assert len({getattr(config, field) for config in drawn}) > 1, field
