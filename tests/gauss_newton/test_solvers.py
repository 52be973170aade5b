"""Solutions of the system over the instances, and the theorem's constants."""

import pytest
import torch

from lightning_autoassist.gauss_newton.conjugate_gradients import conjugate_gradients
from lightning_autoassist.gauss_newton.jacobian import Jacobian, LayerRows
from lightning_autoassist.gauss_newton.preconditioners import triangular_factor
from lightning_autoassist.gauss_newton.sketches import SKETCHES, hadamard_transform
from lightning_autoassist.gauss_newton.solvers import SOLVER_NAMES, SolverOptions, solve
from tests.gauss_newton.problems import jacobian_of, network, paper_jacobian

ZERO = torch.zeros((), dtype=torch.float64)
EXACT = {"tol": 1e-13, "max_iter": 5000, "rank": 40}


def step(jacobian, residual, damping, seed=0, **options):
    found = solve(jacobian, residual, damping, SolverOptions(**options), torch.Generator().manual_seed(seed))
    return torch.cat([part.flatten() for part in jacobian.transposed_times(found.rows)]), found


def residual_of(jacobian, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = jacobian.num_instances, jacobian.num_outputs
    return torch.randn(shape, dtype=jacobian.layers[0].inputs.dtype, generator=generator)


@pytest.fixture(params=[1, 3], ids=lambda number: f"{number}-outputs")
def jacobian(request):
    rows = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return jacobian_of(network(3, True, request.param, width=9), rows)[0]


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_steps_are_those_of_least_squares_on_the_explicit_jacobian(jacobian, solver, damping):
    residual, explicit = residual_of(jacobian), jacobian.explicit()
    root = torch.eye(explicit.shape[1], dtype=torch.float64) * damping**0.5
    target = torch.cat([residual.flatten(), residual.new_zeros(explicit.shape[1])])[:, None]
    # The solution of least norm, as J has more columns than rows.
    expected = torch.linalg.lstsq(torch.cat([explicit, root]), target, driver="gelsd").solution.squeeze(1)
    found, _ = step(jacobian, residual, ZERO + damping, solver=solver, **EXACT)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("solver", ["gram", "dense"])
def test_a_row_that_is_there_twice_does_not_break_the_undamped_system(solver):
    once = paper_jacobian(20, 400, 8)
    inputs, outputs = once.layers[0]
    twice = Jacobian([LayerRows(torch.cat([inputs, inputs[:5]]), torch.cat([outputs, outputs[:5]]))])
    residual = residual_of(once)
    expected, _ = step(once, residual, ZERO, solver="gram")
    found, _ = step(twice, torch.cat([residual, residual[:5]]), ZERO, solver=solver)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_damping_to_infinity_gives_the_direction_of_sgd(jacobian, solver):
    residual = residual_of(jacobian)
    gradient = jacobian.explicit().T @ residual.flatten()
    found, _ = step(jacobian, residual, ZERO + 1e9, solver=solver, **EXACT)
    torch.testing.assert_close(found * 1e9, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_a_weight_of_2_is_the_row_twice(jacobian, solver):
    residual = residual_of(jacobian)
    root = torch.ones(jacobian.num_instances, 1, dtype=torch.float64)
    root[4] = 2**0.5
    weighted = Jacobian([LayerRows(a, b * root.unsqueeze(2)) for a, b in jacobian.layers])
    doubled = Jacobian([LayerRows(torch.cat([a, a[4:5]]), torch.cat([b, b[4:5]])) for a, b in jacobian.layers])
    first, _ = step(weighted, residual * root, ZERO + 0.1, solver=solver, **EXACT)
    second, _ = step(doubled, torch.cat([residual, residual[4:5]]), ZERO + 0.1, solver=solver, **EXACT)
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


# ---- the sketch


def test_the_hadamard_transform_is_the_product_with_the_matrix():
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(10):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    values = torch.randn(3, 2, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard_transform(values), values @ matrix)


@pytest.mark.parametrize("name", SKETCHES)
def test_a_sketch_keeps_the_gram_matrix_in_the_mean(name):
    """Over many seeds, for layers of several sizes and several outputs."""
    rows = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian, _ = jacobian_of(network(3, True, 2), rows)
    products = []
    for seed in range(400):
        sketched = SKETCHES[name](jacobian, 32, torch.Generator().manual_seed(seed))
        products.append(sketched @ sketched.T)
    products = torch.stack(products)
    error = products.std(0) / len(products) ** 0.5
    assert ((products.mean(0) - jacobian.gram()).abs() < 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("name", SKETCHES)
def test_the_condition_is_at_most_12_with_4n_rows(name):
    conditions = []
    for seed in range(20):
        jacobian = paper_jacobian(128, 1024, 16, seed, decay=(0, 0.5, 1)[seed % 3])
        sketched = SKETCHES[name](jacobian, 4 * 128, torch.Generator().manual_seed(seed))
        inverse = torch.linalg.inv(triangular_factor(sketched, ZERO))
        conditions.append(torch.linalg.cond(inverse.T @ jacobian.gram() @ inverse).item())
    assert max(conditions) <= 12
    assert torch.linalg.cond(paper_jacobian(128, 1024, 16).gram()) > 100


def test_the_factor_is_that_of_qr_also_where_the_product_is_not_positive_definite():
    sketched = torch.randn(20, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.qr(sketched.T).R
    found = triangular_factor(sketched, ZERO)
    torch.testing.assert_close(found, expected * expected.diagonal().sign()[:, None])
    sketched[1] = sketched[0]
    singular = triangular_factor(sketched, ZERO)
    torch.testing.assert_close(singular.T @ singular, sketched @ sketched.T, rtol=1e-10, atol=1e-8)
    assert singular.diagonal().abs().min() > 0


def test_iterations_with_the_sketch_do_not_grow_with_n():
    """Where those of plain conjugate gradients do; in float32, in which n = 2048 takes seconds."""
    plain, sketched = [], []
    for n in (128, 512, 2048):
        jacobian = paper_jacobian(n, 2048, 16, dtype=torch.float32, decay=1)
        residual, damping = residual_of(jacobian), torch.zeros(())
        sketched.append(step(jacobian, residual, damping, solver="sketch")[1].num_iterations)
        plain.append(step(jacobian, residual, damping, solver="cg", max_iter=200)[1].num_iterations)
    assert max(sketched) <= 12
    assert plain[0] > max(sketched)
    assert plain[2] > 2 * plain[0]


def test_nystrom_needs_fewer_iterations_where_there_is_damping():
    jacobian = paper_jacobian(400, 1024, 16)
    residual, damping = residual_of(jacobian), 1e-3 * jacobian.gram_diagonal().mean()
    counts = {
        name: step(jacobian, residual, damping, solver=name, rank=100)[1].num_iterations
        for name in ("cg", "nystrom", "sketch")
    }
    assert counts["sketch"] <= 12
    assert counts["nystrom"] < 0.7 * counts["cg"]


def test_conjugate_gradients_leave_what_is_solved_as_it_is():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    found = conjugate_gradients(lambda x: matrix @ x, torch.zeros(3, dtype=torch.float64), tol=1e-6, max_iter=5)
    assert found.num_iterations == 0
    assert found.solution.tolist() == [0, 0, 0]
