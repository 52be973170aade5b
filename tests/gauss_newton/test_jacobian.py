"""Products with the Jacobian equal autograd's."""

import pytest
import torch

from tests.gauss_newton.problems import autograd_jacobian, jacobian_of, network

CASES = [(layers, bias, outputs) for layers in (1, 2, 3, 4) for bias in (True, False) for outputs in (1, 3)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-layers-{'with' if case[1] else 'no'}-bias-{case[2]}-outputs")
def pair(request):
    net = network(*request.param)
    rows = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return jacobian_of(net, rows)[0], autograd_jacobian(net, rows)


def near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_all_products_equal_autograds(pair):
    jacobian, expected = pair
    n, c = jacobian.num_instances, jacobian.num_outputs
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(n, c, dtype=torch.float64, generator=generator)
    v = torch.randn(expected.shape[1], dtype=torch.float64, generator=generator)
    shapes = [(layer.outputs.shape[2], layer.inputs.shape[1]) for layer in jacobian.layers]
    directions = [part.view(shape) for part, shape in zip(v.split([q * p for q, p in shapes]), shapes, strict=True)]
    near(jacobian.explicit(), expected)
    near(jacobian.times(directions), (expected @ v).view(n, c))
    near(torch.cat([part.flatten() for part in jacobian.transposed_times(u)]), expected.T @ u.flatten())
    near(jacobian.gram(), expected @ expected.T)
    near(jacobian.gram_times(u), (expected @ (expected.T @ u.flatten())).view(n, c))
    near(jacobian.gram_diagonal(), expected.square().sum(1).view(n, c))
    chosen = torch.tensor([n * c - 1, 0, 3])
    near(jacobian.gram_columns(chosen), (expected @ expected.T)[:, chosen])
