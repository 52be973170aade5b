"""Real processes on gloo: every mode is one process on the whole batch; bytes are as predicted."""

import sys

import pytest
import torch

from lightning_autoassist.kfac.assignment import Assignment, FactorSizes, num_grad_workers, predicted_traffic
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions, UpdateClock
from lightning_autoassist.kfac.preconditioner import factor_sizes
from tests.helpers.processes import run_with_children
from tests.kfac.processes import CASES, OFTEN, RESUMED, STEPS, TIME_LIMIT

pytestmark = pytest.mark.timeout(TIME_LIMIT + 60)
SHARED = [name for name, (_, world, _) in CASES.items() if world > 1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each process of each case has, and the folder."""
    folder = tmp_path_factory.mktemp("processes")
    done = run_with_children([sys.executable, "-m", "tests.kfac.processes", str(folder)], TIME_LIMIT)
    assert done.returncode == 0, done.output
    worlds = {name: world for name, (_, world, _) in CASES.items()} | {name: w for name, (_, w) in RESUMED.items()}
    return folder, {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]
        for name, world in worlds.items()
    }


def assert_one_run(seen, whole):
    torch.testing.assert_close(seen["parameters"], whole["parameters"], rtol=1e-6, atol=1e-6)
    for own, expected in zip(seen["factors"], whole["factors"], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_ranks_are_bit_equal(runs, name):
    first, *others = runs[1][name]
    for other in others:
        assert torch.equal(first["parameters"], other["parameters"])
        assert all(torch.equal(*pair) for pair in zip(first["factors"], other["factors"], strict=True))


@pytest.mark.parametrize("name", [name for name in SHARED if not name.startswith("equal")])
def test_every_mode_is_one_process_on_the_whole_batch(runs, name):
    whole = runs[1]["variants 1" if name.startswith("variants") else "comm_opt 1"][0]
    assert_one_run(runs[1][name][0], whole)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_is_resumed_on_another_number_of_processes(runs, name):
    """Data are the same: a step's batch is the union of the processes'."""
    for seen in runs[1][name]:
        assert_one_run(seen, runs[1]["comm_opt 1"][0])


def due_steps(interval):
    clock = UpdateClock(interval)
    return sum(clock.is_due(step) and clock.note(step) for step in range(1, STEPS + 1))


@pytest.mark.parametrize("name", SHARED)
def test_bytes_held_and_sent_are_those_that_were_predicted(runs, name):
    net, world, own = CASES[name]
    options = KFACOptions(**own)
    sizes = {layer: factor_sizes(kind, 4096) for layer, kind in choose_layers(net(), options).chosen.items()}
    workers = num_grad_workers(options.grad_worker_fraction, world)
    assignment = Assignment(
        sizes, world, workers, options.assignment_strategy, colocate_factors=options.colocate_factors
    )
    for rank, seen in enumerate(runs[1][name]):
        predicted = predicted_traffic(
            sizes,
            assignment,
            rank,
            is_eigen=options.compute_method == "eigen",
            is_packed=options.symmetry_aware,
            bytes_per_number=8,
        )
        assert seen["held"] == predicted.held
        assert seen["sent"] == {
            "factors": predicted.factors * due_steps(OFTEN["factor_update_steps"]),
            "inverses": predicted.inverses * due_steps(OFTEN["inv_update_steps"]),
            "gradients": predicted.gradients * STEPS,
        }


def test_a_rank_of_four_holds_at_most_half_in_mem_opt(runs):
    held = {mode: [seen["held"] for seen in runs[1][f"equal {mode} 4"]] for mode in ("comm_opt", "mem_opt")}
    assert max(held["mem_opt"]) <= 0.5 * max(held["comm_opt"])
    assert sum(held["mem_opt"]) == held["comm_opt"][0]


def test_a_fraction_that_does_not_divide_is_refused(runs):
    message = (runs[0] / "bad.txt").read_text()
    assert "grad_worker_fraction=0.3 gives 0.6 gradient workers for a layer in 2 processes" in message
    assert 'write one of 0.5, 1, or "comm_opt"' in message


def test_the_grid_has_every_process_once_in_a_row_and_in_a_column():
    assignment = Assignment({"a": FactorSizes(1, 4, 4)}, 8, 2)
    columns = [assignment.ranks_of_column(column) for column in range(4)]
    assert columns == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert [assignment.ranks_of_row(rank) for rank in (0, 5)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    [column] = assignment.column_of.values()
    for rank in range(8):
        sender = assignment.sender_to(rank, "a")
        assert assignment.is_grad_worker(sender, "a")
        assert sender in assignment.ranks_of_row(rank)
    assert set(assignment.inverter_of["a"]) <= set(assignment.ranks_of_column(column))


def test_loads_are_near_the_best_possible():
    """Longest processing time first is at most 4/3 - 1/(3m) of the optimum (Graham, 1969), here by exhaustion."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        widths = torch.randint(2, 30, (6,), generator=generator).tolist()
        sizes = {str(number): FactorSizes(1, width, width) for number, width in enumerate(widths)}
        assignment = Assignment(sizes, 2, 1)
        costs = [2 * width**3 for width in widths]
        loads = [0, 0]
        for cost, name in zip(costs, sizes, strict=True):
            loads[assignment.inverter_of[name][0]] += cost
        subsets = (sum(c for bit, c in enumerate(costs) if mask >> bit & 1) for mask in range(64))
        best = min(max(part, sum(costs) - part) for part in subsets)
        assert max(loads) <= (4 / 3 - 1 / 6) * best
