"""Networks and data whose Jacobians are known."""

import itertools

import torch
from torch import nn

from lightning_autoassist.gauss_newton.jacobian import Jacobian, LayerRows


def unit_rows(n, d, generator, dtype=torch.float64, decay=0.5):
    """Rows of norm 1 whose covariance has a spectrum that falls, as that of images."""
    rows = torch.randn(n, d, generator=generator, dtype=dtype) / torch.arange(1, d + 1) ** decay
    return rows / rows.norm(dim=1, keepdim=True)


def paper_jacobian(n, m, d, seed=0, dtype=torch.float64, decay=0.5):
    """Of the paper's network at its start."""
    generator = torch.Generator().manual_seed(seed)
    rows = unit_rows(n, d, generator, dtype, decay)
    weights = torch.randn(m, d, generator=generator, dtype=dtype)
    signs = torch.randint(2, (m,), generator=generator).mul(2).sub(1)
    active = ((rows @ weights.T) > 0) * signs / m**0.5
    return Jacobian([LayerRows(rows, active.to(dtype).unsqueeze(1))])


def network(num_layers, bias, num_outputs, width=7):
    """Linear layers with a tanh between them, in float64."""
    torch.manual_seed(num_layers)
    sizes = [5, *[width] * (num_layers - 1), num_outputs]
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def jacobian_of(net, rows):
    """From one forward pass, by hand."""
    inputs, sums, values = [], [], rows
    for layer in net:
        if isinstance(layer, nn.Linear):
            ones = [values.new_ones(len(rows), 1)] if layer.bias is not None else []
            inputs.append(torch.cat([values, *ones], 1).detach())
        values = layer(values)
        if isinstance(layer, nn.Linear):
            sums.append(values)
    columns = [torch.autograd.grad(values[:, c].sum(), sums, retain_graph=True) for c in range(values.shape[1])]
    outputs = [torch.stack(parts, 1) for parts in zip(*columns, strict=True)]
    return Jacobian([LayerRows(a, b) for a, b in zip(inputs, outputs, strict=True)]), values.detach()


def autograd_jacobian(net, rows):
    """Row by row, columns in the order of :meth:`Jacobian.explicit`."""
    result = []
    for row in rows:
        for output in net(row):
            gradients = dict(
                zip(net.parameters(), torch.autograd.grad(output, net.parameters(), retain_graph=True), strict=True)
            )
            parts = []
            for layer in net:
                if isinstance(layer, nn.Linear):
                    bias = [] if layer.bias is None else [gradients[layer.bias][:, None]]
                    parts.append(torch.cat([gradients[layer.weight], *bias], 1).flatten())
            result.append(torch.cat(parts))
    return torch.stack(result)
