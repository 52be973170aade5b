from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_autoassist.capture.autograd_graph import knows_shapes
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.capture.test_loss_capture import _seeded, by_instance, early_bound, observed  # noqa: F401, the fixture
from tests.losses.test_losses import B, C, cases_and_reductions

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
needs_compiled_capture = pytest.mark.skipif(TORCH < (2, 7), reason="torch.compile below 2.7 knows no function modes")
needs_shapes = pytest.mark.skipif(
    not knows_shapes(torch.zeros(1, requires_grad=True).sum()), reason="this torch's graph tells no shapes"
)
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")


# ---- where and how a step runs


def test_manual_optimization_is_captured_at_its_backward():
    net, target, weights = nn.Linear(3, C), torch.randint(0, C, (B,)), torch.rand(B)
    features = torch.randn(B, 3)

    def step():
        net.zero_grad()
        (2 * F.cross_entropy(net(features), target)).backward()

    output, observation, _ = observed(step, weights=weights)
    assert output is None
    rows = F.cross_entropy(net(features), target, reduction="none")
    torch.testing.assert_close(observation.losses, rows.detach())
    expected = torch.autograd.grad(2 * (rows * weights).mean(), net.weight)[0]
    torch.testing.assert_close(net.weight.grad, expected)


def test_several_backwards_in_a_step_are_not_attributed():
    net, target = nn.Linear(3, C), torch.randint(0, C, (B,))

    def step():
        for _ in range(2):
            F.cross_entropy(net(torch.randn(B, 3)), target).backward()

    _, observation, reason = observed(step)
    assert observation is None
    assert "runs backward 2 times" in reason

    def with_losses():
        step()
        return {"instance_loss": torch.arange(6.0)}

    assert observed(with_losses)[1].losses.tolist() == [0, 1, 2, 3, 4, 5]


def test_accumulation_and_loss_scale_leave_the_observation_alone():
    net, target, features = nn.Linear(3, C), torch.randint(0, C, (B,)), torch.randn(B, 3)
    found = [observed(lambda c=c: F.cross_entropy(net(features), target) * c)[1] for c in (1, 1 / 8, 65536.0)]
    for each in found[1:]:
        torch.testing.assert_close(each.losses, found[0].losses)
        torch.testing.assert_close(each.scores, found[0].scores)


def test_an_exception_in_the_step_leaves_nothing_behind():
    logits = torch.randn(B, C, requires_grad=True)
    step = InstanceLossCapture().step((logits,), B)

    def failing(logits):
        F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), step:
        failing(logits)
    assert torch.overrides._get_current_function_mode() is None
    alive = weakref.ref(logits)
    del logits
    gc.collect()
    assert alive() is None


def test_the_users_errors_stay_theirs():
    logits = torch.randn(B, C, requires_grad=True)
    with pytest.raises(ValueError, match="Expected input batch_size"):
        observed(lambda: F.cross_entropy(logits, torch.zeros(B + 1, dtype=torch.long)))
    with pytest.raises(TypeError):
        observed(lambda: F.cross_entropy(logits, wrong=1))


@pytest.mark.parametrize("num_classes", [C, 2**19 // B + 1])  # the second is scored in backward
@pytest.mark.parametrize("runs_backward", [False, True])
def test_nothing_of_a_step_is_kept_after_it_was_observed(num_classes, runs_backward):
    logits = torch.randn(B, num_classes, requires_grad=True)
    step = InstanceLossCapture().step((logits,), B)
    with step:
        loss = F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
    observation = step.observe(loss)
    if runs_backward:
        loss.backward()
        assert observation.scores.isfinite().all()
    alive = weakref.ref(logits)
    del logits, loss
    gc.collect()
    assert alive() is None
    assert observation.losses.shape == (B,)


@pytest.mark.parametrize(("case", "reduction"), cases_and_reductions())
def test_the_step_does_not_wait_for_the_device(case, reduction):
    """Meta tensors have no values: whatever asked for one would fail."""
    values, options = ({key: _on_meta(value) for key, value in each.items()} for each in case.make())

    def step():
        return 0.5 * case.function(**values, **options, reduction=reduction).sum()

    try:
        step()
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"torch itself asks for values: {error}")
    _, observation, reason = observed(step, weights=torch.ones(B, device="meta"))
    assert reason is None
    assert observation.scores.device.type == "meta"


def _on_meta(value):
    return value.detach().to("meta").requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


@needs_compiled_capture
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile itself
@pytest.mark.parametrize("compiled", ["model", "loss", "step"])
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_code_is_captured(compiled, weighted):
    torch.compiler.reset()
    net, features = nn.Linear(3, C), torch.randn(B, 3)
    target = torch.randint(0, C, (B,))
    parts = {"model": net, "loss": F.cross_entropy, "step": lambda: parts["loss"](parts["model"](features), target)}
    parts[compiled] = torch.compile(parts[compiled], backend="aot_eager", fullgraph=True)
    weights = torch.rand(B) if weighted else None
    capture = InstanceLossCapture()
    for _ in range(3):
        with capture.step((features, target), B, weights=weights) as step:
            loss = parts["step"]()
        observation = step.observe(loss)
    rows = F.cross_entropy(net(features), target, reduction="none")
    torch.testing.assert_close(observation.losses, rows.detach())
    torch.testing.assert_close(
        observation.scores, (net(features).softmax(1) - F.one_hot(target, C)).norm(dim=1).detach()
    )
    expected = rows.mean() if weights is None else (rows * weights).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, net.weight), torch.autograd.grad(expected, net.weight))


@needs_compiled_capture
def test_compiled_code_with_several_losses_is_not_guessed():
    torch.compiler.reset()
    net, features, target = nn.Linear(3, C), torch.randn(B, 3), torch.randint(0, C, (B,))

    @torch.compile(backend="aot_eager")
    def step():
        output = net(features)
        return F.cross_entropy(output, target) + 0.3 * F.mse_loss(output, torch.zeros(B, C))

    _, observation, reason = observed(step)
    assert observation is None
    assert "compiled code" in reason


# ---- ways out


def test_instance_loss_in_the_output_is_taken():
    values, weights = torch.randn(B, requires_grad=True), torch.rand(B)

    def step():
        losses = values.square() * 3
        return {"loss": losses.mean(), "instance_loss": losses}

    output, observation, _ = observed(step, weights=weights)
    assert torch.equal(observation.losses, 3 * values.detach().square())
    assert torch.equal(observation.scores, observation.losses)
    (gradient,) = torch.autograd.grad(output["loss"], values)
    torch.testing.assert_close(gradient, 6 * values.detach() * weights / B)


def test_instance_loss_behind_a_named_loss_is_weighted_once():
    values, weights = torch.randn(B, requires_grad=True), torch.rand(B)

    def step():
        losses = F.mse_loss(values, torch.zeros(B), reduction="none")
        return {"loss": losses.mean(), "instance_loss": losses}

    output, observation, _ = observed(step, weights=weights)
    torch.testing.assert_close(observation.losses, values.detach().square())
    (gradient,) = torch.autograd.grad(output["loss"], values)
    torch.testing.assert_close(gradient, 2 * values.detach() * weights / B)


@pytest.mark.parametrize("bad", [torch.zeros(B + 1), torch.zeros(()), 0.5])
def test_instance_loss_of_another_shape_is_refused(bad):
    values = torch.randn(B, requires_grad=True)
    _, observation, reason = observed(lambda: {"loss": values.sum(), "instance_loss": bad})
    assert observation is None
    assert rf"must be a tensor of shape ({B},)" in reason


def test_detached_instance_loss_takes_no_weights():
    values = torch.randn(B, requires_grad=True)

    def step():
        losses = values.square()
        return {"loss": losses.mean(), "instance_loss": losses.detach()}

    assert observed(step)[1].losses.shape == (B,)
    _, observation, reason = observed(step, weights=torch.ones(B))
    assert observation is None
    assert "reweighting='none'" in reason


@pytest.mark.parametrize("output", [None, torch.zeros(()), {"loss": None}, {}, 3.0])
def test_where_nothing_can_be_attributed_the_reason_names_the_ways_out(output):
    module = nn.Linear(1, 1)
    _, observation, reason = observed(lambda: output, module=module)
    assert observation is None
    assert "Linear.training_step" in reason
    assert "instance_loss" in reason


def test_instance_loss_method_of_the_module_is_called():
    class Module(nn.Linear):
        def instance_loss(self, batch, outputs):
            return (self(batch) - outputs["target"]).abs().squeeze(1)

    module, batch = Module(3, 1), torch.randn(B, 3)
    _, observation, _ = observed(lambda: {"loss": module(batch).sum(), "target": 2.0}, batch, module=module)
    torch.testing.assert_close(observation.losses, (module(batch) - 2).abs().squeeze(1).detach())
    assert observation.source == "instance_loss of Module.instance_loss"


def test_an_attribute_that_happens_to_be_named_instance_loss_is_left_alone():
    module = nn.Linear(3, C)
    module.instance_loss = nn.CrossEntropyLoss()
    target = torch.randint(0, C, (B,))
    _, observation, _ = observed(lambda: module.instance_loss(module(torch.randn(B, 3)), target), module=module)
    assert observation.source.startswith("cross_entropy")


def _scripted_classification(output, target):
    return F.cross_entropy(output, target, ignore_index=1)


def _scripted_regression(output, target):
    return 0.5 * F.mse_loss(output, F.one_hot(target, 5).float())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("function", [_scripted_classification, _scripted_regression])
def test_scripted_losses_are_read_from_the_graph(function):
    scripted = torch.jit.script(function)
    net, features = nn.Linear(3, C), torch.randn(B, 3)
    target, weights = torch.randint(0, C, (B,)), torch.rand(B)
    _, expected, _ = observed(lambda: function(net(features), target), weights=weights)
    for _ in range(3):  # scripted code is compiled at its second or third call
        loss, observation, _ = observed(lambda: scripted(net(features), target), weights=weights)
        torch.testing.assert_close(observation.losses, expected.losses)
        torch.testing.assert_close(observation.scores, expected.scores)
        found = torch.autograd.grad(loss, net.weight)
        reference, _, _ = observed(lambda: function(net(features), target), weights=weights)
        torch.testing.assert_close(found, torch.autograd.grad(reference, net.weight))


BY_HAND = {
    "nll": lambda output, target: -output.log_softmax(1).gather(1, target[:, None]).mean(),
    "squares": lambda output, target: (output - F.one_hot(target, C)).pow(2).mean(),
    "sum": lambda output, target: torch.sum(-output.log_softmax(1).gather(1, target[:, None])) / B,
}


@needs_shapes
@pytest.mark.parametrize("by_hand", BY_HAND)
@pytest.mark.parametrize("weighted", [False, True])
def test_hand_written_losses_are_taken_with_a_warning(by_hand, weighted):
    net, features = nn.Linear(3, C), torch.randn(B, 3)
    target = torch.randint(0, C, (B,))
    weights = torch.rand(B) if weighted else None
    with pytest.warns(UserWarning, match="hand-written loss at test_loss_capture_steps.py:"):
        loss, observation, _ = observed(lambda: BY_HAND[by_hand](net(features), target), weights=weights)
    output = net(features)
    if by_hand == "squares":
        rows = (output - F.one_hot(target, C)).pow(2).mean(1)
    else:
        rows = F.cross_entropy(output, target, reduction="none")
    torch.testing.assert_close(observation.losses, rows.detach())
    assert torch.equal(observation.scores, observation.losses)
    expected = rows.mean() if weights is None else (rows * weights).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, net.weight), torch.autograd.grad(expected, net.weight))


@needs_shapes
def test_the_warning_of_a_hand_written_loss_comes_once():
    net, features, capture = nn.Linear(3, C), torch.randn(B, 3), InstanceLossCapture()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with capture.step((), B) as step:
                loss = net(features).square().mean()
            step.observe(loss)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, output: net.weight.pow(2).sum(),
        lambda net, output: ((output - output.mean()) / output.std()).pow(2).sum(1).max(),
        lambda net, output: output.logsumexp((0, 1)),
    ],
    ids=["parameters only", "mean inside the loss", "no reduction"],
)
def test_other_reductions_are_not_taken_for_losses(loss):
    net = nn.Linear(3, B)
    _, observation, reason = observed(lambda: loss(net, net(torch.randn(B, 3))))
    assert observation is None
    assert "No per-instance loss was found" in reason


# ---- settings


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="score must be one of gradient_norm, loss, got 'norm'"):
        InstanceLossCapture("norm")
    with pytest.raises(ValueError, match="row_order must be one of"):
        InstanceLossCapture(row_order="major")


class Subclass(Tensor):
    """A tensor of a class of its own, of the kind that medical images come in: results are of that class as well."""


def test_what_is_observed_is_a_plain_tensor_whatever_the_batch_is_of():
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0]).as_subclass(Subclass)
    with InstanceLossCapture().step((logits, target), 4) as step:
        loss = F.cross_entropy(logits.as_subclass(Subclass), target)
    observation = step.observe(loss)
    assert {type(each) for each in observation if not isinstance(each, str)} <= {Tensor, type(None)}
    assert torch.equal(observation.losses, F.cross_entropy(logits, target.as_subclass(Tensor), reduction="none"))
