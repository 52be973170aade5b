"""Losses, scores and weights of instances are what a computation by hand says, in every precision."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist import InstanceLossCapture
from tests.capture.test_loss_capture_steps import needs_compiled_capture

pytestmark = pytest.mark.gpu
B, T, C = 24, 6, 10

# Half precision keeps 8 bits, and a gradient is rounded several times.
TOLERANCES = {torch.float32: (1e-4, 1e-6), torch.float16: (2e-2, 2e-3), torch.bfloat16: (6e-2, 6e-3)}


def dense():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, C)), torch.randn(B, 16), torch.randint(0, C, (B,))


def channels_last():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, C))
    images = torch.randn(B, 3, 10, 10).contiguous(memory_format=torch.channels_last)
    return net.to(memory_format=torch.channels_last), images, torch.randint(0, C, (B,))


def tokens(num_classes=C):
    return nn.Linear(16, num_classes), torch.randn(B, T, 16), torch.randint(0, num_classes, (B, T))


def many_logits():
    """So many that the scores come from the backward pass."""
    return tokens(2**19 // (B * T) + 100)


CASES = {"dense": dense, "channels last": channels_last, "tokens": tokens, "many logits": many_logits}


def made(case, device, dtype=torch.float32):
    torch.manual_seed(0)
    net, inputs, targets = CASES[case]()
    return net.to(device, dtype), inputs.to(device, dtype), targets.to(device)


def rows_of(net, inputs, targets):
    """Losses and gradient norms by hand, shape ``(B,)``; each instance's tokens count alike."""
    logits = net(inputs).flatten(0, -2)
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
    with torch.no_grad():
        errors = logits.float().softmax(1) - F.one_hot(targets.flatten(), logits.shape[1])
        norms = errors.norm(dim=1)
    return losses.view(B, -1).mean(1), norms.view(B, -1).mean(1)


def assert_is_captured(net, inputs, targets, *, autocast=None, scaler=None, step=None):
    """One step against the computation by hand: losses, scores, and the weighted gradient."""
    weights = torch.linspace(0.5, 2, B, device=inputs.device)
    device_type = inputs.device.type

    def precision():
        return contextlib.nullcontext() if autocast is None else torch.autocast(device_type, autocast)

    def scaled(loss):
        return loss if scaler is None else scaler.scale(loss)

    capture = InstanceLossCapture()
    with precision():
        with capture.step((inputs, targets), B, weights=weights) as watched:
            if step is None:
                loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
            else:
                loss = step(inputs, targets)
        observation = watched.observe(loss)
    assert observation is not None, watched.reason
    scaled(loss).backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with precision():
        losses, norms = rows_of(net, inputs, targets)
        scaled((losses * weights).mean()).backward()
    rtol, atol = TOLERANCES[autocast or inputs.dtype]
    torch.testing.assert_close(observation.losses, losses.detach().float(), rtol=rtol, atol=atol)
    torch.testing.assert_close(observation.scores, norms, rtol=rtol, atol=atol)
    for mine, parameter in zip(found, net.parameters(), strict=True):
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(mine, parameter.grad, rtol=rtol, atol=atol * max(1.0, largest))


@pytest.mark.parametrize("case", CASES)
def test_in_single_precision(device, case):
    assert_is_captured(*made(case, device))


@pytest.mark.parametrize("case", CASES)
def test_in_mixed_precision(device, case):
    assert_is_captured(*made(case, device), autocast=torch.bfloat16)


@pytest.mark.parametrize("case", CASES)
def test_in_half_precision_with_a_scaled_loss(device, case):
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    assert_is_captured(*made(case, device), autocast=torch.float16 if device == "cuda" else None, scaler=scaler)


@pytest.mark.parametrize("case", CASES)
def test_in_true_bfloat16(device, case):
    assert_is_captured(*made(case, device, torch.bfloat16))


@pytest.mark.parametrize("runs_backward", [False, True])
def test_scores_are_unknown_where_the_gradients_overflow(device, runs_backward):
    """A scaled loss that overflows gives no finite gradient: such scores are told from numbers."""
    net, inputs, targets = made("many logits", device)
    capture = InstanceLossCapture()
    with capture.step((inputs, targets), B) as step:
        loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
    observation = step.observe(loss)
    if runs_backward:
        (loss * torch.tensor(3e38, device=device) * 1e3).backward()
    assert observation.losses.isfinite().all()
    assert not observation.scores.isfinite().any()


@needs_compiled_capture
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("compiled", ["network", "step"])
def test_compiled(device, compiled):
    torch.compiler.reset()
    net, inputs, targets = made("dense", device)
    backend = "inductor" if device == "cuda" else "aot_eager"
    if compiled == "network":
        assert_is_captured(torch.compile(net, backend=backend), inputs, targets)
        return

    @torch.compile(backend=backend)
    def step(inputs, targets):
        return F.cross_entropy(net(inputs), targets)

    assert_is_captured(net, inputs, targets, step=step)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_weights_of_one_change_no_bit(device, case, autocast):
    net, inputs, targets = made(case, device)

    def gradients(weights):
        net.zero_grad()
        context = contextlib.nullcontext() if autocast is None else torch.autocast(device, autocast)
        with context:
            if weights is False:
                loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
            else:
                with InstanceLossCapture().step((inputs, targets), B, weights=weights) as step:
                    loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
                assert step.observe(loss) is not None, step.reason
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in net.parameters())]

    plain = gradients(False)
    for weights in (None, torch.ones(B, device=device)):
        for mine, expected in zip(gradients(weights), plain, strict=True):
            assert torch.equal(mine, expected)
