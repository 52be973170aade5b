from __future__ import annotations

from benchmarks.common.accuracy_report import measured_on


def test_a_table_names_commands_without_what_only_chooses_among_their_runs():
    on = {"hardware": "a machine", "versions": {"torch": "2.9"}}
    commands = [
        "python benchmarks/images.py --augment --seeds 3 --policy full --policy proportional:floor=0.1 --threads 2",
        "python -m benchmarks.images --dataset digits --augment --threads 2 --budget 0.4",
    ]
    said = measured_on([{**on, "command": command} for command in commands])
    assert said == "Measured on a machine; torch 2.9, by `python -m benchmarks.images --augment --threads 2`."
