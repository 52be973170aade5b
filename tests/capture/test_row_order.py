"""Rows that a step puts in another order than the batch's: followed through the step, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, InstanceLossCapture
from tests.helpers.ordinary import trainer
from tests.helpers.versions import finds_losses_by_hand

B, D, C, T = 8, 6, 5, 7
ORDER = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(D, C)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, D, generator=generator), torch.arange(B) * 3 % C


def seen(step, batch, **options):
    """What one step's capture finds, and why nothing."""
    with InstanceLossCapture(score="loss", **options).step(batch, batch_size=B) as captured:
        output = step()
    return captured.observe(output), captured.reason


def by_hand(rows):
    """Reorders without a single index tensor."""
    return torch.cat([rows[4:], rows[:4]])


REORDERINGS = {
    "index": lambda x: x[ORDER],
    "index tuple": lambda x: x[ORDER, ...],
    "list": lambda x: x[ORDER.tolist()],
    "array": lambda x: x[ORDER.numpy()],
    "index_select": lambda x: x.index_select(0, ORDER),
    "torch.index_select": lambda x: torch.index_select(x, 0, index=ORDER),
    "gather": lambda x: x.gather(0, ORDER.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)),
    "take_along_dim": lambda x: torch.take_along_dim(x, ORDER.view(-1, *[1] * (x.ndim - 1)), 0),
    "flip": lambda x: x.flip(0),
    "torch.flip": lambda x: torch.flip(x, dims=[0]),
    "roll": lambda x: x.roll(1, 0),
    "cat": by_hand,
    "stack": lambda x: torch.stack([x[i] for i in ORDER.tolist()]),
    "stack of unbind": lambda x: torch.stack(tuple(reversed(x.unbind()))),
    "chunks": lambda x: torch.cat(x.chunk(4)[::-1]),
    "halves by view": lambda x: x.view(2, B // 2, *x.shape[1:]).transpose(0, 1).reshape(x.shape),
    "written by index": lambda x: torch.empty_like(x).index_copy_(0, ORDER, x),
    "set by index": lambda x: written(x, ORDER),
    "row by row": lambda x: row_by_row(x),
    "time-major": lambda x: x.unsqueeze(0).index_select(1, ORDER).squeeze(0),
}


def written(rows, places):
    result = torch.zeros_like(rows)
    result[places] = rows
    return result


def row_by_row(rows):
    result = torch.zeros_like(rows)
    for place, source in enumerate(ORDER.tolist()):
        result[place] = rows[source]
    return result


@pytest.mark.parametrize("reorder", REORDERINGS.values(), ids=REORDERINGS)
@pytest.mark.parametrize("has_labels", [True, pytest.param(False, marks=finds_losses_by_hand)])
@pytest.mark.filterwarnings("ignore:hand-written loss")
def test_reordered_rows_are_refused_and_the_place_is_named(net, data, reorder, has_labels):
    x, y = data

    def step():
        if has_labels:
            return F.cross_entropy(net(reorder(x)), reorder(y))
        return (net(reorder(x)).square().mean(1) - 1).abs().mean()

    found, reason = seen(step, (x, y) if has_labels else [x])
    assert found is None
    assert "in another order than the instances" in reason
    assert "reordered at test_row_order.py" in reason


@pytest.mark.parametrize("reorder", REORDERINGS.values(), ids=REORDERINGS)
def test_rows_that_are_put_back_are_in_order(net, data, reorder):
    x, y = data
    order = reorder(torch.arange(B))
    found, _ = seen(lambda: F.cross_entropy(net(reorder(x))[order.argsort()], y), (x, y))
    torch.testing.assert_close(found.losses, F.cross_entropy(net(x), y, reduction="none").detach())
    found, _ = seen(lambda: F.cross_entropy(written(net(reorder(x)), order), y), (x, y))
    torch.testing.assert_close(found.losses, F.cross_entropy(net(x), y, reduction="none").detach())


def test_a_sort_is_a_reordering(net, data):
    x, _ = data
    lengths = torch.tensor([3, 5, 1, 7, 2, 4, 6, 8])

    def step():
        _, order = lengths.sort(descending=True)
        return F.mse_loss(net(x[order]).mean(1), lengths.sort(descending=True).values / 8.0)

    assert seen(step, (x, lengths))[0] is None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("unsorts", [True, False, "inside torch"])
def test_packed_sequences(data, batch_first, unsorts):
    x, y = torch.randn(B, T, D), data[1]
    lengths = torch.tensor([3, 5, 1, 7, 2, 4, 6, 7])
    lstm, head = nn.LSTM(D, B, batch_first=batch_first), nn.Linear(B, C)  # as many features as instances

    def step():
        batch, target = (x if batch_first else x.transpose(0, 1)), y
        if unsorts == "inside torch":
            packed = pack_padded_sequence(batch, lengths, batch_first=batch_first, enforce_sorted=False)
        else:
            sizes, order = lengths.sort(descending=True, stable=True)
            batch = batch.index_select(0 if batch_first else 1, order)
            packed = pack_padded_sequence(batch, sizes, batch_first=batch_first)
        output, (last, _) = lstm(packed)
        output, _ = pad_packed_sequence(output, batch_first=batch_first)
        logits = head(last[-1]) + head(output.mean(1 if batch_first else 0))
        if unsorts is True:
            logits = logits[order.argsort()]
        elif unsorts is False:
            target = target[order]
        return F.cross_entropy(logits, target)

    found, reason = seen(step, {"x": x, "lengths": lengths, "y": y})
    assert (found is None) == (unsorts is False), reason


def mixup(net, x, y):
    mixed = 0.7 * x + 0.3 * x[ORDER]
    out = net(mixed)
    return 0.7 * F.cross_entropy(out, y) + 0.3 * F.cross_entropy(out, y[ORDER])


def mixup_in_place(net, x, y):
    out = net(x.clone().mul_(0.7).add_(x.flip(0).mul(0.3)))
    return 0.7 * F.cross_entropy(out, y) + 0.3 * F.cross_entropy(out, y.flip(0))


def cutmix(net, x, y):
    x = x.clone()
    x[:, :2] = x[ORDER, :2]
    out = net(x)
    return 0.7 * F.cross_entropy(out, y) + 0.3 * F.cross_entropy(out, y[ORDER])


def triplet(net, x, y):
    z = net(x)
    return F.triplet_margin_loss(z, net(x + 0.1), z[ORDER])


def ranking(net, x, y):
    score = net(x).mean(1)
    return F.margin_ranking_loss(score, score[ORDER], (y - y[ORDER]).sign().float())


def shuffled_normalisation(net, x, y):
    keys = net(x[ORDER])[ORDER.argsort()]
    return (net(x) - keys.detach()).square().mean(1).mean()


def two_views(net, x, y):
    z = F.normalize(net(torch.cat([x, x + 0.1])), dim=1)
    first, second = z.chunk(2)
    return F.cross_entropy(first @ second.T, torch.arange(B)) + F.cross_entropy(second @ first.T, torch.arange(B))


def masked(net, x, y):
    z = F.normalize(net(x), dim=1)
    others = (z @ z.T)[~torch.eye(B, dtype=torch.bool)].view(B, B - 1)
    return F.cross_entropy(others, torch.zeros(B, dtype=torch.long))


def shuffled_features(net, x, y):
    return F.cross_entropy(net(x[:, torch.randperm(D)].flip(1).roll(1, 1)), y)


def by_numpy(net, x, y):
    return F.cross_entropy(net(torch.from_numpy(x.numpy().copy())), y)


def picked_logits(net, x, y):
    return -net(x).log_softmax(1)[torch.arange(B), y].mean()


def shuffled_metric(net, x, y):
    F.cross_entropy(net(x[ORDER]), y[ORDER])  # only logged
    return F.cross_entropy(net(x), y)


IN_ORDER = (
    mixup,
    mixup_in_place,
    cutmix,
    triplet,
    ranking,
    pytest.param(shuffled_normalisation, marks=finds_losses_by_hand),
    two_views,
    masked,
    shuffled_features,
    by_numpy,
    pytest.param(picked_logits, marks=finds_losses_by_hand),
    shuffled_metric,
)


@pytest.mark.parametrize("step", IN_ORDER, ids=lambda step: step.__name__)
@pytest.mark.filterwarnings("ignore:hand-written loss")
def test_steps_that_reorder_on_purpose_are_not_refused(net, data, step):
    found, reason = seen(lambda: step(net, *data), data)
    assert found is not None, reason


def test_shifted_windows_and_flipped_images_as_wide_as_the_batch_are_in_order(data):
    x, y = torch.randn(B, 3, B, B), data[1]
    conv, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, C)

    def step():
        z = conv(x.flip(-1)).permute(0, 2, 3, 1)
        z = z.roll((-1, -1), (1, 2))
        windows = z.view(B, 2, B // 2, 2, B // 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, B * B // 4, 4)
        z = windows.view(B, 2, 2, B // 2, B // 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(B, B, B, 4)
        return F.cross_entropy(head(z.roll((1, 1), (1, 2)).mean((1, 2))), y)

    assert seen(step, (x, y))[0] is not None


@pytest.mark.parametrize("sorts", [True, False])
def test_rows_of_tokens(data, sorts):
    tokens = torch.randint(0, 9, (B, T))
    embedding, head = nn.Embedding(9, D), nn.Linear(D, 9)

    def step():
        order = ORDER if sorts else slice(None)
        logits = head(embedding(tokens[order]))
        return F.cross_entropy(logits.view(-1, 9), tokens[order].reshape(-1))

    assert (seen(step, tokens)[0] is None) == sorts


def test_rows_lost_from_sight_are_judged_by_the_target(net, data):
    x, y = data

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return torch.from_numpy(values.detach().numpy() * 2.0)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2.0

    assert seen(lambda: F.cross_entropy(Opaque.apply(net(x[ORDER])), y[ORDER]), (x, y))[0] is None
    assert seen(lambda: F.cross_entropy(Opaque.apply(net(x)), y), (x, y))[0] is not None

    def mixing():
        out = Opaque.apply(net(x + x[ORDER]))
        return F.cross_entropy(out, y) + F.cross_entropy(out, y[ORDER])

    assert seen(mixing, (x, y))[0] is not None


@pytest.mark.parametrize("kind", ["floats", "many integers"])
def test_rows_reordered_by_numpy_are_known_by_their_values(kind):
    num_rows = 32
    x = torch.randn(num_rows, D)
    y = x.sum(1) if kind == "floats" else torch.arange(num_rows) * 7 % 11
    net = nn.Linear(D, 1 if kind == "floats" else 11)

    def step(order):
        out = net(torch.from_numpy(x.numpy()[order]))
        target = torch.from_numpy(y.numpy()[order])
        return F.mse_loss(out.squeeze(1), target) if kind == "floats" else F.cross_entropy(out, target)

    for order, is_refused in ((np.arange(num_rows)[::-1].copy(), True), (np.arange(num_rows), False)):
        with InstanceLossCapture().step((x, y), batch_size=num_rows) as captured:
            loss = step(order)
        assert (captured.observe(loss) is None) == is_refused


def test_an_order_that_is_kept_by_chance_is_looked_at_again(net, data):
    x, y = data
    capture = InstanceLossCapture()
    reasons = []
    for number in range(12):
        keys = torch.arange(B) if number < 10 else torch.arange(B).flip(0)
        with capture.step((x, y), batch_size=B) as captured:
            order = keys.argsort()
            loss = F.cross_entropy(net(x[order]), y[order])
        captured.observe(loss)
        reasons.append(captured.reason)
    assert reasons[:10] == [None] * 10
    assert all("in another order" in reason for reason in reasons[10:])


def test_instance_losses_given_in_another_order_are_refused(net, data):
    x, y = data

    def step():
        losses = F.cross_entropy(net(x[ORDER]), y[ORDER], reduction="none")
        return {"loss": losses.mean(), "instance_loss": losses}

    assert "another order" in seen(step, (x, y))[1]


def test_after_the_first_steps_one_in_a_hundred_is_looked_at(net, data):
    x, y = data
    capture = InstanceLossCapture()
    looked_at = []
    for number in range(210):
        with capture.step((x, y), batch_size=B) as captured:
            if captured._rows is not None:
                looked_at.append(number)
            loss = F.cross_entropy(net(x), y)
        captured.observe(loss)
    assert looked_at == [0, 1, 2, 102, 202]


def test_rows_that_are_reordered_late_are_refused_within_a_hundred_steps(net, data):
    x, y = data
    capture = InstanceLossCapture()
    reasons = []
    for number in range(150):
        order = torch.randperm(B) if number >= 40 else torch.arange(B)
        with capture.step((x, y), batch_size=B) as captured:
            rows = (x[order], y[order]) if number >= 40 else (x, y)
            loss = F.cross_entropy(net(rows[0]), rows[1])
        captured.observe(loss)
        reasons.append(captured.reason)
    assert reasons[:102] == [None] * 102
    assert all("in another order" in reason for reason in reasons[102:])


def test_nothing_is_written_into_the_users_tensors(net, data):
    x, y = data
    buffer, state = torch.empty_like(x), torch.get_rng_state()

    def step():
        torch.stack(list(x.unbind()), out=buffer)
        return F.cross_entropy(net(buffer), y)

    before = x.clone()
    assert seen(step, (x, y))[0] is not None
    assert torch.equal(buffer, before)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


class Custom:
    """A batch of a class of the user's own, which nothing iterates over."""

    def __init__(self, x, y):
        self.x, self.y, self.whole = x, y, self


def test_batches_of_other_classes_are_looked_into(net, data):
    batch = Custom(*data)
    found, _ = seen(lambda: F.cross_entropy(net(batch.x), batch.y), batch)
    assert torch.equal(found.labels, data[1])
    assert seen(lambda: F.cross_entropy(net(batch.x[ORDER]), batch.y[ORDER]), batch)[0] is None


# ---- whole runs


class Sorting(pl.LightningModule):
    def __init__(self, unsorts):
        super().__init__()
        self.unsorts = unsorts
        self.net = nn.Linear(D, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        order = x[:, 0].argsort()
        out = self.net(x[order]).squeeze(1)
        y = (y - y.mean()) / y.std()  # of continuous values, which stand nowhere in the batch
        if self.unsorts:
            return F.mse_loss(out[order.argsort()], y)
        return F.mse_loss(out, y[order])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("unsorts", [True, False])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_run_on_normalised_targets(unsorts, batch_size):
    pl.seed_everything(0, verbose=False)
    x = torch.randn(96, D)
    loader = DataLoader(TensorDataset(x, x.sum(1)), batch_size, shuffle=True)
    callback = AutoAssistCallback(lag=0)
    run = trainer(max_epochs=4, callbacks=[callback])
    data = AutoAssistDataModule(loader, budget=0.6)
    if unsorts:
        run.fit(Sorting(unsorts), datamodule=data)
    else:
        with pytest.warns(UserWarning, match="stopped filtering.*another order.*test_row_order.py"):
            run.fit(Sorting(unsorts), datamodule=data)
    assert (callback.summary()["keep_rate"] < 1) == unsorts


def test_orders_are_numpy_arrays_of_the_batch(net, data):
    from lightning_autoassist.capture.row_propagation import RowPropagation

    x, _ = data
    tracker = RowPropagation([x], B)
    result = x[ORDER]
    tracker.note(torch.Tensor.__getitem__, (x, ORDER), {}, result)
    np.testing.assert_array_equal(tracker.rows(result).of, ORDER.numpy())
