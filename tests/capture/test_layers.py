"""Layer inputs and output gradients are each instance's own, whatever the loss and the step do to them."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist.capture.interceptor import TrainingStep, observe_training_steps
from lightning_autoassist.capture.layers import LayerCapture, layers_of
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.helpers.ordinary import trainer

B, CLASSES = 6, 3
LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Convolutions(nn.Module):
    """Every kind of layer, with in-place operations behind them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, dilation=2, padding="same", bias=False),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (2, 2)),
            nn.Conv3d(2, 2, (1, 2, 2)),
            nn.Flatten(2),
            nn.Conv1d(2, 2, 3, stride=3),
            nn.Flatten(),
        )
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, values):
        return self.head(self.net(values))


class Sequences(nn.Module):
    """A layer that is called twice, and layers over (B, T, F)."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 4)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)
        self.unused = nn.Linear(4, 4)

    def forward(self, tokens):
        hidden = self.twice(torch.tanh(self.twice(self.tokens(tokens))))
        self.unused(hidden)
        return self.head(hidden).mean(1)


def images():
    torch.manual_seed(0)
    net = Convolutions().double()
    values = torch.randn(B, 2, 8, 8).double()
    net(values)
    return net, values, torch.arange(B) % CLASSES


def texts():
    torch.manual_seed(0)
    return Sequences().double(), torch.randint(0, 5, (B, 7)), torch.arange(B) % CLASSES


def captured(net, batch, step, **options):
    """Calls of a step's layers, by name."""
    calls = []
    capture = LayerCapture(layers_of(net, LAYERS), calls.append, **options)
    loss = capture.observe(TrainingStep((batch,), {}, step))
    loss.backward()
    capture.close()
    return calls


def weight_gradients(calls, names):
    """Gradients of each instance's loss at each layer's weight, summed over calls."""
    found = {}
    for call in calls:
        assert call.batch_size == B
        assert call.rows_per_instance is not None
        rows = []
        for instance in range(B):
            mine = slice(instance * call.rows_per_instance, (instance + 1) * call.rows_per_instance)
            output = call.layer(call.inputs[mine])
            rows += torch.autograd.grad(output, call.layer.weight, call.gradients[mine])
        found[call.name] = found.get(call.name, 0) + torch.stack(rows)
    assert found.keys() == set(names)
    return found


def by_autograd(net, loss_of_instance, names):
    """The same from one backward pass for each instance."""
    layers = dict(net.named_modules())
    weights = [layers[name].weight for name in names]
    rows = [torch.autograd.grad(loss_of_instance(i), weights) for i in range(B)]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def assert_instances_own(net, calls, loss_of_instance, names=None):
    names = names or [name for name in layers_of(net, LAYERS) if name != "unused"]
    expected, found = by_autograd(net, loss_of_instance, names), weight_gradients(calls, names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def cross_entropy_of(net, values, target):
    return lambda i: F.cross_entropy(net(values[i : i + 1]), target[i : i + 1])


REDUCTIONS = {
    "mean": lambda logits, target: F.cross_entropy(logits, target),
    "a coefficient": lambda logits, target: 0.3 * F.cross_entropy(logits, target),
    "sum": lambda logits, target: F.cross_entropy(logits, target, reduction="sum"),
    "sum by B": lambda logits, target: F.cross_entropy(logits, target, reduction="sum") / B,
    "rows": lambda logits, target: F.cross_entropy(logits, target, reduction="none").mean(),
    "sum of rows": lambda logits, target: F.cross_entropy(logits, target, reduction="none").sum() / 7,
    "in a module": nn.CrossEntropyLoss(),
    "a mapping": lambda logits, target: F.nll_loss(logits.log_softmax(1), target),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("data", [images, texts])
def test_gradients_are_the_instances_own_whatever_the_reduction(data, reduction):
    net, values, target = data()
    calls = captured(net, (values, target), lambda: REDUCTIONS[reduction](net(values), target))
    assert_instances_own(net, calls, cross_entropy_of(net, values, target))
    assert {int(call.num_terms) for call in calls} == {B}


def test_every_call_of_a_layer_is_seen_and_branches_that_do_not_reach_the_loss_are_not():
    net, values, target = texts()
    names = [call.name for call in captured(net, (values, target), lambda: F.cross_entropy(net(values), target))]
    assert sorted(names) == ["head", "tokens", "twice", "twice"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_elements_of_an_instance_are_summed(reduction):
    net, values, _ = images()
    target = torch.rand(B, CLASSES).double()
    calls = captured(net, (values, target), lambda: F.mse_loss(net(values), target, reduction=reduction))
    assert_instances_own(net, calls, lambda i: F.mse_loss(net(values[i : i + 1]), target[i : i + 1], reduction="sum"))
    assert {int(call.num_terms) for call in calls} == {B}


def test_tokens_that_do_not_count_are_no_terms():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, CLASSES)).double()
    tokens, target = torch.randint(0, 5, (B, 7)), torch.randint(0, CLASSES, (B, 7))
    target[:, 5:] = -100

    def loss(rows, reduction):
        return F.cross_entropy(net(tokens[rows]).flatten(0, 1), target[rows].flatten(), reduction=reduction)

    calls = captured(net, (tokens, target), lambda: loss(slice(None), "mean"))
    assert_instances_own(net, calls, lambda i: loss(slice(i, i + 1), "sum"), ["0", "1"])
    assert {int(call.num_terms) for call in calls} == {5 * B}


@pytest.mark.parametrize("time_major", [False, True])
def test_rows_of_an_instance_are_adjacent(time_major):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    values, target = torch.randn(B, 3, 4).double(), torch.arange(B) % CLASSES

    def step():
        rows = values.transpose(0, 1) if time_major else values
        return F.cross_entropy(net(rows).mean(0 if time_major else 1), target)

    assert_instances_own(
        net,
        captured(net, (values, target), step),
        lambda i: F.cross_entropy(net(values[i]).mean(0, keepdim=True), target[i : i + 1]),
        ["0", "2"],
    )


@pytest.mark.parametrize("order", ["batch_major", "time_major"])
def test_the_order_of_several_rows_an_instance_can_be_given(order):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, CLASSES)).double()
    views, target = torch.randn(B, 2, 2, 4).double(), torch.arange(B) % CLASSES

    def step():
        rows = views.flatten(0, 1) if order == "batch_major" else torch.cat([views[:, 0], views[:, 1]])
        labels = target.repeat_interleave(2) if order == "batch_major" else target.repeat(2)
        return F.cross_entropy(net(rows), labels)

    calls = captured(net, (target, views), step, row_order=order)
    assert {call.rows_per_instance for call in calls} == {2}
    assert_instances_own(
        net, calls, lambda i: F.cross_entropy(net(views[i]), target[[i, i]], reduction="sum"), ["0", "2"]
    )
    assert {call.rows_per_instance for call in captured(net, (target, views), step)} == {None}


def test_weights_are_undone_and_told():
    net, values, target = images()
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.5])
    calls = []
    capture = LayerCapture(layers_of(net, LAYERS), calls.append)
    outer = InstanceLossCapture().step((values, target), B, weights=weights)
    with outer:
        step = TrainingStep(((values, target),), {}, lambda: F.cross_entropy(net(values), target))
        loss = capture.observe(step)
    assert outer.observe(loss) is not None
    loss.backward()
    for call in calls:
        torch.testing.assert_close(call.weights.float(), weights)
    assert_instances_own(net, calls, cross_entropy_of(net, values, target))
    assert {call.weights for call in captured(net, (values, target), lambda: F.cross_entropy(net(values), target))} == {
        None
    }


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_are_seen_once(use_reentrant):
    net, values, target = images()
    names = list(layers_of(net, LAYERS))

    def step():
        hidden = values.clone().requires_grad_()
        return F.cross_entropy(net.head(checkpoint(net.net, hidden, use_reentrant=use_reentrant)), target)

    calls = captured(net, (values, target), step)
    assert sorted(call.name for call in calls) == sorted(names)
    assert_instances_own(net, calls, cross_entropy_of(net, values, target))


def test_gradients_that_the_user_takes_beside_backward_do_not_count():
    net, values, target = images()

    def step():
        inputs = values.clone().requires_grad_()
        logits = net(inputs)
        torch.autograd.grad(logits.sum(), [inputs, *net.parameters()], retain_graph=True, create_graph=True)
        net(values)  # and a pass that leads nowhere
        return F.cross_entropy(logits, target)

    calls = captured(net, (values, target), step)
    assert len(calls) == 5
    assert_instances_own(net, calls, cross_entropy_of(net, values, target))


def test_a_loss_that_is_not_known_is_taken_for_a_mean():
    net, values, target = images()
    calls = []
    capture = LayerCapture(layers_of(net, LAYERS), calls.append)
    others = torch.randn(40, CLASSES).double()

    def step():
        return (net(values) @ others.t()).logsumexp(0).sum() / B

    capture.observe(TrainingStep(((values, target),), {}, step)).backward()
    assert "losses" in capture.unknown_scale
    assert len(calls) == 5
    output = net.head(net.net(values))
    (gradient,) = torch.autograd.grad((output @ others.t()).logsumexp(0).sum(), output)
    torch.testing.assert_close(calls[0].gradients, gradient)


# Dynamo hides it from everybody but those to whom warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_module_is_seen():
    net, values, target = texts()
    compiled = torch.compile(net, backend="eager")
    calls = captured(compiled, (values, target), lambda: F.cross_entropy(compiled(values), target))
    for call in calls:
        assert call.name.startswith("_orig_mod.")
    calls = [call._replace(name=call.name.removeprefix("_orig_mod.")) for call in calls]
    assert_instances_own(net, calls, cross_entropy_of(net, values, target))


# ---- within a Trainer


class Small(pl.LightningModule):
    def __init__(self, manual=False, fails=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES))
        self.automatic_optimization = not manual
        self.fails = fails
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append(({name: value.clone() for name, value in self.net.state_dict().items()}, batch))
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.fails:
            raise KeyError("the user's own mistake")
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Capturing(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        self.calls = []
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        self.capture = LayerCapture(
            layers_of(pl_module, (nn.Linear,)),
            self.calls.append,
            loss_factor=lambda: (1.0 if scaler is None else scaler.get_scale()) / accumulated,
        )
        self.remove = observe_training_steps(trainer.strategy, self.capture.observe)

    def teardown(self, trainer, pl_module, stage):
        self.remove()
        self.capture.close()

    def on_exception(self, trainer, pl_module, exception):
        self.teardown(trainer, pl_module, "fit")


OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
    "scaled": {"plugins": lambda: MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))},
}


def fit(module, **options):
    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(18, 4), torch.arange(18) % CLASSES)
    capturing = Capturing()
    run = trainer(max_epochs=1, callbacks=[capturing], **{k: v() if callable(v) else v for k, v in options.items()})
    loader = DataLoader(data, batch_size=B)
    run.fit(module, loader, loader)
    return capturing, run


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_accumulation_and_loss_scale_are_undone_in_a_trainer(options, manual):
    if manual and options in ("accumulated", "clipped"):
        pytest.skip("Lightning refuses both in manual optimization")
    module = Small(manual)
    capturing, _ = fit(module, **OPTIONS[options])
    assert len(capturing.calls) == 2 * len(module.steps) == 6
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if options == "scaled" else {}
    for number, (state, (values, target)) in enumerate(module.steps):
        net = Small().net
        net.load_state_dict(state)
        last = capturing.calls[2 * number]
        assert last.name == "net.2"
        expected = net(values).softmax(1) - F.one_hot(target, CLASSES)
        torch.testing.assert_close(last.gradients, expected, **tolerance)
        assert last.gradients.dtype == torch.float32


def test_nothing_is_left_after_a_fit_or_an_exception():
    for fails in (False, True):
        module = Small(fails=fails)
        if fails:
            with pytest.raises(KeyError, match="own mistake"):
                fit(module)
        else:
            fit(module)
        for layer in layers_of(module, (nn.Linear,)).values():
            assert not layer._forward_hooks
        for parameter in module.parameters():
            assert not parameter._post_accumulate_grad_hooks
