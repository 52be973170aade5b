"""A warning that does not apply is ignored for a fit, and the process's filters are afterwards as they were."""

from __future__ import annotations

import warnings

import pytest

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.trainer_support.muted_warning import MutedWarning
from tests.helpers.ordinary import Classifier, ClustersData, trainer

MESSAGE = "You have overridden `on_before_batch_transfer` in both"


class Transferring(Classifier):
    """Overrides a hook of which Lightning says, wrongly, that the data module's replaces it."""

    fails = False

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        assert any(message is not None and message.match(MESSAGE) for _, message, *_ in warnings.filters)
        if self.fails:
            raise KeyError("the user's own mistake")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_leaves_the_filters_as_they_were(fails):
    before = list(warnings.filters)
    module = Transferring()
    module.fails = fails
    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback()])
    data = AutoAssistDataModule(ClustersData(), budget=0.6)
    if fails:
        with pytest.raises(KeyError, match="own mistake"):
            run.fit(module, datamodule=data)
    else:
        run.fit(module, datamodule=data)
    assert list(warnings.filters) == before


def test_filters_that_others_add_in_the_meantime_stay():
    muted = MutedWarning("of no use")
    muted.begin()
    muted.begin()  # adds no second one
    warnings.filterwarnings("ignore", "somebody else's")
    others = warnings.filters[0]
    muted.end()
    assert others in warnings.filters
    with pytest.warns(UserWarning, match="of no use"):
        warnings.warn("of no use", stacklevel=2)


def test_filters_that_others_restore_in_the_meantime_are_left_alone():
    muted = MutedWarning("of no use")
    with warnings.catch_warnings():
        muted.begin()
    before = list(warnings.filters)
    muted.end()
    assert list(warnings.filters) == before
