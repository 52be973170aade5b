"""KAISA's rule in plain PyTorch, without hooks, Trainer and processes: for Linear and Conv2d layers of a Sequential."""

import torch
from torch import nn
from torch.nn import functional as F


def rows_of(layer, inputs, gradients):
    """Rows of inputs (with 1 for the bias) and of output gradients: one a position."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs, gradients = patches.mT.flatten(0, 1), gradients.flatten(2).mT.flatten(0, 1)
    return torch.cat([inputs, torch.ones(len(inputs), 1)], 1), gradients


class Reference:
    """The factors of each layer, and how they change a gradient.

    A = mean of a aᵀ over batch and positions, G = sum over positions and mean over the batch of g gᵀ, where g is the
    gradient of an instance's own loss; both as running means with decay, divided by what is missing to weight 1.
    """

    def __init__(self, net, *, damping, kl_clip, decay, factor_steps, inverse_steps):
        self.net = net
        self.layers = [layer for layer in net if isinstance(layer, (nn.Linear, nn.Conv2d))]
        self.damping, self.kl_clip, self.decay = damping, kl_clip, decay
        self.factor_steps, self.inverse_steps = factor_steps, inverse_steps
        self.step = 0
        self.weight = 0.0  # of the running means so far
        self.factors = [[0.0, 0.0] for _ in self.layers]
        self.eigen = [None for _ in self.layers]

    def gradients(self, values, target):
        """Inputs and output gradients of each layer, and the parameters' gradients; the loss is a mean."""
        inputs, outputs = [], []
        for layer in self.net:
            if layer in self.layers:
                inputs.append(values.detach())
                values = layer(values)
                outputs.append(values)
            else:
                values = layer(values.clone())  # it may work in place
        loss = F.cross_entropy(values, target)
        parameters = list(self.net.parameters())
        found = torch.autograd.grad(loss, [*outputs, *parameters])
        for parameter, gradient in zip(parameters, found[len(outputs) :], strict=True):
            parameter.grad = gradient
        return inputs, [gradient * len(target) for gradient in found[: len(outputs)]]

    def update(self, values, target, rate):
        """Set each parameter's ``grad`` to KAISA's direction."""
        inputs, gradients = self.gradients(values, target)
        if self.step % self.factor_steps == 0:
            self.weight = self.decay * self.weight + 1 - self.decay
            for factors, layer, a, g in zip(self.factors, self.layers, inputs, gradients, strict=True):
                a, g = rows_of(layer, a, g)
                factors[0] = self.decay * factors[0] + (1 - self.decay) * a.mT @ a / len(a)
                factors[1] = self.decay * factors[1] + (1 - self.decay) * g.mT @ g / len(target)
        if self.step % self.inverse_steps == 0:
            self.eigen = [[torch.linalg.eigh(factor / self.weight) for factor in pair] for pair in self.factors]
        self.step += 1
        directions = [self.direction(layer, *pair) for layer, pair in zip(self.layers, self.eigen, strict=True)]
        product = sum((v * self.matrix(layer)).sum() for layer, v in zip(self.layers, directions, strict=True))
        scale = min(1.0, float((self.kl_clip / (rate**2 * product).abs()).sqrt()))
        for layer, direction in zip(self.layers, directions, strict=True):
            layer.weight.grad = scale * direction[:, :-1].reshape(layer.weight.shape)
            layer.bias.grad = scale * direction[:, -1]

    @staticmethod
    def matrix(layer):
        return torch.cat([layer.weight.grad.flatten(1), layer.bias.grad.unsqueeze(1)], 1)

    def direction(self, layer, inputs, outputs):
        damped = outputs[0].clamp(min=0).unsqueeze(1) * inputs[0].clamp(min=0) + self.damping
        return outputs[1] @ ((outputs[1].mT @ self.matrix(layer) @ inputs[1]) / damped) @ inputs[1].mT
