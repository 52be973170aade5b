"""A new callback on layer inputs and output gradients needs no edit of the package: this one is written here."""

import pytorch_lightning as pl
import torch
from torch import nn

from lightning_autoassist.capture.interceptor import observe_training_steps
from lightning_autoassist.capture.layers import LayerCapture, layers_of
from tests.helpers.ordinary import Classifier, ClustersData, trainer


class LayerCounts(pl.Callback):
    """Counts layer inputs and output gradients of instances, and finds the instance with the largest gradient."""

    def __init__(self):
        self.counts = {}
        self.largest = 0.0

    def on_train_start(self, trainer, pl_module):
        self.capture = LayerCapture(layers_of(pl_module, (nn.Linear,)), self.count)
        self.remove = observe_training_steps(trainer.strategy, self.capture.observe)

    def count(self, call):
        inputs, gradients = self.counts.get(call.name, (0, 0))
        self.counts[call.name] = inputs + len(call.inputs), gradients + len(call.gradients)
        self.largest = max(self.largest, float(call.gradients.norm(dim=1).max()))

    def teardown(self, trainer, pl_module, stage):
        self.remove()
        self.capture.close()


def test_inputs_and_gradients_are_counted_and_the_run_is_the_same():
    weights, counts = [], LayerCounts()
    for callbacks in ([], [counts]):
        pl.seed_everything(0, verbose=False)
        module = Classifier()
        trainer(max_epochs=2, callbacks=callbacks).fit(module, datamodule=ClustersData(40, 10))
        weights.append(torch.nn.utils.parameters_to_vector(module.parameters()))
    assert counts.counts == {"net.1": (80, 80), "net.4": (80, 80)}
    assert 0 < counts.largest < 2**0.5 * 2
    assert torch.equal(*weights)
