"""Batches by tokens of a stream's rows, with a real Trainer."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.end_to_end.test_streaming_runs import Saving, StatefulLoader
from tests.filtering.sampling.test_token_runs import PAD, LanguageModel, Sentences, join
from tests.helpers.ordinary import trainer

NUM_INSTANCES, MAX_TOKENS, NUM_STEPS, EPOCHS = 300, 200, 10, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]


class Stream(IterableDataset):
    """Sentences in their order, without a length."""

    def __init__(self):
        self.sentences = Sentences(NUM_INSTANCES)

    def __iter__(self):
        return (self.sentences[index] for index in range(NUM_INSTANCES))


class Reader(LanguageModel):
    """Notes each batch: its instances, and its shape."""

    def __init__(self):
        super().__init__()
        self.seen, self.shapes, self.tokens = [], [], {}

    def training_step(self, batch, batch_idx):
        indices, tokens = batch
        self.seen.append(indices.tolist())
        self.shapes.append(tuple(tokens.shape))
        self.tokens.update(zip(indices.tolist(), tokens, strict=True))
        return super().training_step(batch, batch_idx)


def fit(*callbacks, resume=None, seed=0, policy="proportional", **options):
    pl.seed_everything(seed, verbose=False)
    module, callback = Reader(), AutoAssistCallback(policy)
    loader = StatefulLoader(Stream(), batch_size=16, collate_fn=join)
    settings = {"max_tokens": MAX_TOKENS, "pad_values": PAD, "steps_per_epoch": NUM_STEPS, "seed": 3, **options}
    data = AutoAssistDataModule(loader, **settings)
    run = trainer(max_epochs=EPOCHS, callbacks=[callback, *callbacks], limit_val_batches=0)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, callback, data


def test_rows_of_similar_length_share_batches_within_the_budget():
    module, callback, data = fit()
    assert len(module.seen) == EPOCHS * NUM_STEPS
    assert callback._learner.is_filtering
    assert callback.summary()["keep_rate"] < 1
    sentences = Sentences(NUM_INSTANCES)
    for indices, (size, width) in zip(module.seen, module.shapes, strict=True):
        assert width == max(int(sentences.sizes[index]) for index in indices)  # no padding that none of them needs
        assert size == len(indices)
        assert size * width <= MAX_TOKENS
    for index, tokens in module.tokens.items():
        assert tokens[tokens != PAD].tolist() == sentences.rows[index].tolist()
    used = sum(int(sentences.sizes[indices].sum()) for indices in module.seen)
    assert used / sum(size * width for size, width in module.shapes) > 0.7
    # Whatever is not trained on waits, or was not kept.
    assert data.candidate_stream.num_kept == sum(map(len, module.seen)) + len(data.candidate_stream.waiting)


def test_what_is_measured_counts():
    module, _, _ = fit(lengths=lambda batch: 2 * (batch[1] != PAD).sum(1))
    assert max(2 * size * width for size, width in module.shapes) <= MAX_TOKENS


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    steps = (3, 17, 28)
    whole, _, _ = fit(Saving(tmp_path, steps))
    for step in steps:
        resumed, _, _ = fit(resume=tmp_path / f"step={step}.ckpt", seed=99)
        assert resumed.seen == whole.seen[step:]
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (step, name)


def test_a_row_that_is_longer_than_a_batch_is_a_batch_of_its_own():
    module, _, _ = fit(max_tokens=20, policy="uniform", steps_per_epoch=100)
    longest = [shape for shape in module.shapes if shape[1] > 20]
    assert longest
    assert all(size == 1 for size, _ in longest)


def test_lengths_that_are_given_one_by_one_are_refused():
    with pytest.raises(MisconfigurationException, match="lengths= must be a function: it gets a batch of the loader"):
        fit(lengths=[3] * NUM_INSTANCES)


def test_rows_without_a_length_say_what_to_give():
    data = AutoAssistDataModule(DataLoader(Numbers(), batch_size=10), max_tokens=100, steps_per_epoch=3)
    with pytest.raises(ValueError, match="nothing in the stream's batches says how long a row is; pass lengths="):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback()]).fit(LanguageModel(), datamodule=data)


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(100))
