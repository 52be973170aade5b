r"""Sketches of the transposed Jacobian that read only the factors of its columns.

A column of :math:`J^T` is a tensor product :math:`b \otimes a`, and a sketch :math:`S` of such products can be computed
from the factors alone: the Jacobian is never formed. Both are oblivious subspace embeddings: with some multiple of n
rows, the singular values of :math:`S J^T` are those of :math:`J^T` up to constant factors.

Shapes: n instances, C outputs of each, p inputs and q outputs of a layer, s rows of the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lightning_autoassist.gauss_newton.jacobian import Jacobian, LayerRows

# Hadamard matrices up to this order are multiplied as matrices; larger ones are tensor products of such.
DENSE_ORDER = 256

Sketch = Callable[[Jacobian, int, Generator], Tensor]


def tensor_srht(jacobian: Jacobian, size: int, generator: Generator) -> Tensor:
    r"""Subsampled randomized Hadamard transforms of both factors: entry k is :math:`(H D b)_{i_k} (H D' a)_{j_k}`.

    Source: Ahle et al., Oblivious Sketching of High-Degree Polynomial Kernels, SODA 2020, arXiv:1909.01410; the
    transform that Brand, Peng, Song & Weinstein, ITCS 2021, arXiv:2006.11648, precondition with.

    Args:
        jacobian: J.
        size: s.
        generator: Of signs and samples, on the CPU.

    Returns:
        The sketch S of the transposed Jacobian, transposed, shape ``(n C, s)``.
    """
    return _summed(jacobian, size, generator, _srht)


def tensor_sketch(jacobian: Jacobian, size: int, generator: Generator) -> Tensor:
    """Count sketches of both factors, convolved by the fast Fourier transform.

    Source: Pham & Pagh, KDD 2013; as a subspace embedding: Avron, Nguyen & Woodruff, NeurIPS 2014.

    Args:
        jacobian: J.
        size: s.
        generator: Of signs and buckets, on the CPU.

    Returns:
        As of :func:`tensor_srht`.
    """
    return _summed(jacobian, size, generator, _count_sketch)


SKETCHES: dict[str, Sketch] = {"tensor_srht": tensor_srht, "tensor_sketch": tensor_sketch}


def hadamard_transform(values: Tensor) -> Tensor:
    """Each row times the Hadamard matrix, which is orthogonal but for the factor that it leaves out.

    Args:
        values: Shape ``(..., k)``, k a power of two.

    Example:
        >>> hadamard_transform(torch.tensor([1.0, 0.0, 0.0, 2.0]))
        tensor([ 3., -1., -1.,  3.])
    """
    order = values.shape[-1]
    inner = min(order, DENSE_ORDER)
    blocks = values.reshape(-1, inner) @ _hadamard_matrix(inner, values)
    if order > inner:
        blocks = hadamard_transform(blocks.view(-1, order // inner, inner).transpose(1, 2)).transpose(1, 2)
    return blocks.reshape(values.shape)


def _hadamard_matrix(order: int, like: Tensor) -> Tensor:
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _summed(
    jacobian: Jacobian, size: int, generator: Generator, sketch: Callable[[LayerRows, int, Generator], Tensor]
) -> Tensor:
    # The layers' parts of a column stand one below the other: independent sketches of them add up to one of the whole.
    total = sketch(jacobian.layers[0], size, generator)
    for layer in jacobian.layers[1:]:
        total = total + sketch(layer, size, generator)
    return total.flatten(0, 1)


def _srht(layer: LayerRows, size: int, generator: Generator) -> Tensor:
    inputs = _mixed(layer.inputs, size, generator)
    outputs = _mixed(layer.outputs, size, generator)
    return outputs.mul_(inputs.unsqueeze(1)).div_(math.sqrt(size))


def _mixed(factor: Tensor, size: int, generator: Generator) -> Tensor:
    """Sampled entries of H D x for each row x."""
    width = factor.shape[-1]
    order = 1 << (width - 1).bit_length()
    padded = torch.nn.functional.pad(factor * _signs(width, generator, factor), (0, order - width))
    sample = _spread(order, size, generator).to(factor.device, non_blocking=True)
    return hadamard_transform(padded).index_select(-1, sample)


def _count_sketch(layer: LayerRows, size: int, generator: Generator) -> Tensor:
    inputs = torch.fft.rfft(_counted(layer.inputs, size, generator))
    outputs = torch.fft.rfft(_counted(layer.outputs, size, generator))
    convolved: Tensor = torch.fft.irfft(outputs * inputs.unsqueeze(1), n=size)
    return convolved


def _counted(factor: Tensor, size: int, generator: Generator) -> Tensor:
    """Entries of each row, with random signs, added up in s random buckets."""
    width = factor.shape[-1]
    buckets = _spread(size, width, generator).to(factor.device, non_blocking=True)
    signed = factor * _signs(width, generator, factor)
    return factor.new_zeros(*factor.shape[:-1], size).index_add_(-1, buckets, signed)


def _spread(num_places: int, count: int, generator: Generator) -> Tensor:
    """Random places, each as often as the others but for one.

    Drawn independently, two of few inputs would now and then fall into one bucket, where the sketch loses what tells
    them apart.
    """
    rounds = [torch.randperm(num_places, generator=generator) for _ in range(-(-count // num_places))]
    return torch.cat(rounds)[:count]


def _signs(width: int, generator: Generator, like: Tensor) -> Tensor:
    return torch.randint(2, (width,), generator=generator).mul_(2).sub_(1).to(like, non_blocking=True)
