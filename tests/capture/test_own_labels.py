"""Labels are those that the batch brought; targets that a step makes are none."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.own_labels import OwnLabels
from tests.helpers.ordinary import trainer
from tests.helpers.versions import resumes_exactly

N, B, D, C = 80, 8, 6, 4
pytestmark = [
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, C)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Contrastive(Base):
    def training_step(self, batch, batch_idx):
        z = F.normalize(self.net(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


class FromQueue(Base):
    """The positive is always the first."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), torch.zeros(len(batch[0]), dtype=torch.long))


class Rotation(Base):
    def training_step(self, batch, batch_idx):
        turns = torch.randint(0, C, (len(batch[0]),))
        return F.cross_entropy(self.net(batch[0] + turns[:, None]), turns)


class PseudoLabels(Base):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return F.cross_entropy(logits, logits.argmax(1))


class PseudoLabelsLater(Base):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return F.cross_entropy(logits, batch[1] if self.current_epoch < 2 else logits.argmax(1))


class Supervised(Base):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1].long().squeeze())


class Column(Base):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1][:, 1].long())


class Popping(Base):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch.pop("x")), batch.pop("label"))


class Mixing(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        order = torch.randperm(len(x))
        out = self.net(0.6 * x + 0.4 * x[order])
        return 0.4 * F.cross_entropy(out, y[order]) + 0.6 * F.cross_entropy(out, y)


LABELS = torch.arange(N) * 7 % C


def tensors(labels=LABELS):
    return TensorDataset(torch.randn(N, D, generator=torch.Generator().manual_seed(0)), labels)


class Dictionaries(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": tensors()[index][0], "label": int(LABELS[index]), "index": index}


def fit(module, data, folder=None, ckpt_path=None, **options):
    pl.seed_everything(0, verbose=False)
    callback = AutoAssistCallback(**options)
    callbacks = [callback]
    if folder is not None:
        callbacks.append(pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    run = trainer(max_epochs=5, callbacks=callbacks, enable_checkpointing=folder is not None)
    run.fit(
        module,
        datamodule=AutoAssistDataModule(DataLoader(data, B, shuffle=True), budget=0.6),
        ckpt_path=ckpt_path,
    )
    return callback


MADE_IN_THE_STEP = [Contrastive, FromQueue, Rotation, PseudoLabels]


@pytest.mark.parametrize("module", MADE_IN_THE_STEP, ids=lambda each: each.__name__)
@pytest.mark.parametrize("options", [{}, {"lag": 4}, {"update": "async"}], ids=str)
def test_targets_made_in_the_step_are_no_labels(module, options):
    callback = fit(module(), tensors(), **options)
    assert callback.instances.seen.all()
    assert callback.instances.labels is None
    assert callback.summary()["keep_rate"] < 1


OWN = {
    "as it is": (Supervised, tensors()),
    "bytes": (Supervised, tensors(LABELS.to(torch.uint8))),
    "a column": (Supervised, tensors(LABELS[:, None])),
    "floats": (Supervised, tensors(LABELS.float())),
    "one of several": (Column, tensors(torch.stack([LABELS.flip(0), LABELS], 1))),
    "taken out of the batch": (Popping, Dictionaries()),
    "mixed": (Mixing, tensors()),
    "other targets later": (PseudoLabelsLater, tensors()),
}


@pytest.mark.parametrize("name", OWN)
def test_what_the_batch_brought_is_the_label(name):
    module, data = OWN[name]
    callback = fit(module(), data)
    assert torch.equal(callback.instances.labels, LABELS.int())


@resumes_exactly
@pytest.mark.parametrize("module", [*MADE_IN_THE_STEP, PseudoLabelsLater, Mixing], ids=lambda each: each.__name__)
@pytest.mark.parametrize("step", [2, 13, 25])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, module, step):
    whole, resumed = module(), module()
    first = fit(whole, tensors(), tmp_path)
    second = fit(resumed, tensors(), tmp_path / "resumed", tmp_path / f"step={step}.ckpt")
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert torch.equal(first.instances.scores, second.instances.scores)
    assert (first.instances.labels is None) == (second.instances.labels is None)


def test_positions_are_none_even_where_the_batch_holds_them():
    own = OwnLabels()
    positions = torch.arange(B)
    for _ in range(20):
        assert own.of([positions], [torch.randn(B, D), positions], B) is None


def test_positions_are_not_compared_for_ever():
    """Each comparison waits for the device."""
    labels, targets = OwnLabels(), torch.arange(B)
    for _ in range(15):
        assert labels.of([targets], [torch.randn(B, D)], B) is None
        assert not labels.is_refused
    assert labels.of([targets], [torch.randn(B, D)], B) is None
    assert labels.is_refused


def test_one_step_that_agrees_by_chance_is_not_enough():
    own = OwnLabels()
    target, column = torch.tensor([0, 1]), torch.tensor([0, 1])
    assert own.of([target], [column], 2) is not None
    assert own.of([target.flip(0)], [column], 2) is None
    assert own.is_refused


def test_the_column_that_agrees_each_time_is_taken():
    own = OwnLabels()
    for number in range(8):
        labels = torch.randint(0, 9, (B,), generator=torch.Generator().manual_seed(number))
        other = labels if number < 2 else labels.flip(0)
        assert torch.equal(own.of([labels], [other, labels], B), labels)
    assert torch.equal(own.of([torch.zeros(B).long()], [other, labels], B), labels)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_the_classes_of_a_binary_loss_are_its_targets(shape):
    capture = InstanceLossCapture()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(8, 3, generator=generator), torch.randint(0, 2, shape, generator=generator).float()
        weight = torch.randn(3, 1, requires_grad=True)
        with capture.step((x, y), batch_size=8) as captured:
            loss = F.binary_cross_entropy_with_logits((x @ weight).reshape(shape), y)
        assert torch.equal(captured.observe(loss).labels, y.reshape(8).long())


def test_soft_targets_of_a_binary_loss_are_no_classes():
    x, y = torch.randn(8, 3), torch.rand(8) * 0.8 + 0.1
    with (capture := InstanceLossCapture()).step((x, y), batch_size=8) as captured:
        loss = F.binary_cross_entropy_with_logits(x @ torch.randn(3, requires_grad=True), y)
    assert captured.observe(loss).labels is None
    assert capture.own_labels.is_refused
