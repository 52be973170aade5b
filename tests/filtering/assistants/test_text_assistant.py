from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.utils.data import DataLoader, IterableDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, AutoAssistPolicy, Instances, TextAssistant
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.memory.token_features import BatchTokens, found_pad_id
from lightning_autoassist.filtering.memory.tokens import MAX_TOKENS, TokenStore, tokens_of
from tests.helpers.ordinary import trainer
from tests.helpers.texts import PAD, BagOfWords, PairSet, TextsData, TextSet, Translator, collate, collate_pairs


class ReferenceText:
    """The paper's Assistant, one instance, one token and one number at a time."""

    def __init__(self, lr=0.5, weight_decay=0.1, mean_decay=0.99):
        self.lr, self.weight_decay, self.mean_decay = lr, weight_decay, mean_decay
        self.presence, self.tfidf = Counter(), Counter()
        self.length, self.bias = [0.0, 0.0], 0.0
        self.num_documents, self.num_with, self.length_sum = 0, Counter(), [0, 0]
        self.running = self.last_mean = None
        self.losses = []

    def inputs(self, sequences):
        presence, tfidf, lengths = {}, {}, [0.0, 0.0]
        for s, words in enumerate(sequences):
            counts = Counter(words)
            values = {
                word: count * (1 + math.log((1 + self.num_documents) / (1 + self.num_with[s, word])))
                for word, count in counts.items()
            }
            norm = math.sqrt(sum(value**2 for value in values.values()))
            for word in counts:
                presence[s, word] = 1 / len(counts)
                tfidf[s, word] = values[word] / norm
            lengths[s] = len(words) / max(10, self.length_sum[s] / max(self.num_documents, 1))
        return presence, tfidf, lengths

    def predict(self, sequences):
        presence, tfidf, lengths = self.inputs(sequences)
        z = self.bias + sum(c * length for c, length in zip(self.length, lengths, strict=True))
        z += sum(self.presence[key] * value for key, value in presence.items())
        z += sum(self.tfidf[key] * value for key, value in tfidf.items())
        return 1 / (1 + math.exp(-z))

    def begin_pass(self):
        self.last_mean, self.losses = sum(self.losses) / len(self.losses), []

    def update(self, documents, is_new, losses):
        for sequences, new in zip(documents, is_new, strict=True):
            if new:
                self.num_documents += 1
                for s, words in enumerate(sequences):
                    self.length_sum[s] += len(words)
                    self.num_with.update((s, word) for word in set(words))
        self.losses += losses
        mean = sum(losses) / len(losses)
        decay = self.mean_decay
        self.running = mean if self.running is None else decay * self.running + (1 - decay) * mean
        level = self.running if self.last_mean is None else self.last_mean
        predictions = [self.predict(sequences) for sequences in documents]
        errors = [p - (loss > level) for p, loss in zip(predictions, losses, strict=True)]
        inputs = [self.inputs(sequences) for sequences in documents]
        step = self.lr / len(documents)
        for weights in (self.presence, self.tfidf):
            for key in weights:
                weights[key] -= step * self.weight_decay * weights[key]
        self.length = [c - step * self.weight_decay * c for c in self.length]
        self.bias -= step * self.weight_decay * self.bias
        for error, (presence, tfidf, lengths) in zip(errors, inputs, strict=True):
            for key, value in presence.items():
                self.presence[key] -= step * error * value
            for key, value in tfidf.items():
                self.tfidf[key] -= step * error * value
            self.length = [c - step * error * length for c, length in zip(self.length, lengths, strict=True)]
            self.bias -= step * error
        return predictions, [loss > level for loss in losses]


def documents_of(rng, count, num_sequences):
    """Texts of 0 to 30 words of 20, and what the Assistant gets of them."""
    documents = [
        [(20 * rng.random(rng.integers(0, 31)) ** 2).astype(int).tolist() for _ in range(num_sequences)]
        for _ in range(count)
    ]
    rows = torch.full((count, 60), -1)
    for row, sequences in zip(rows, documents, strict=True):
        columns = [2 * word + s for s, words in enumerate(sequences) for word in words]
        row[: len(columns)] = torch.tensor(columns)
    return documents, tokens_of(rows)


@pytest.mark.parametrize("num_sequences", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"lr": 2.0, "weight_decay": 1.0, "mean_decay": 0.5}])
def test_text_equals_the_per_instance_reference(num_sequences, settings):
    rng = np.random.default_rng(0)
    assistant, reference = TextAssistant(**settings), ReferenceText(**settings)
    for step in range(30):
        documents, tokens = documents_of(rng, 8, num_sequences)
        losses = rng.random(8).astype(np.float32).tolist()
        is_new = (rng.random(8) < (1 if step < 10 else 0.2)).tolist()
        instances = Instances(tokens=tokens, ages=torch.tensor([-1 if new else 5 for new in is_new]))
        if step in (10, 22):
            assistant.begin_pass()
            reference.begin_pass()
        expected = [reference.predict(sequences) for sequences in documents]
        assert assistant.predict(instances).tolist() == pytest.approx(expected, abs=1e-5)
        outcome = assistant.update(instances, torch.tensor(losses))
        predictions, targets = reference.update(documents, is_new, losses)
        assert outcome.predictions.tolist() == pytest.approx(predictions, abs=1e-5)
        assert outcome.targets.tolist() == targets
    for mine, weights in ((assistant.presence_weight, reference.presence), (assistant.tfidf_weight, reference.tfidf)):
        assert any(weights.values())
        assert {(c % 2, c // 2): mine[c].item() for c in range(len(mine)) if mine[c]} == pytest.approx(
            {key: value for key, value in weights.items() if value}, abs=1e-5
        )


def test_tfidf_is_that_of_scikit_learn():
    documents, tokens = documents_of(np.random.default_rng(1), 40, 1)
    assistant = TextAssistant()
    assistant.update(Instances(tokens=tokens, ages=torch.full((40,), -1)), torch.rand(40))
    vectorizer = TfidfVectorizer(analyzer=lambda sequences: [f"{word:02d}" for word in sequences[0]])
    expected = vectorizer.fit_transform(documents).toarray()
    inputs = assistant._inputs(tokens)
    found = torch.zeros(40, 20).index_put_((inputs.bags, inputs.columns // 2), inputs.tfidf)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_instance_counts_once_for_the_document_frequencies():
    _, tokens = documents_of(np.random.default_rng(2), 6, 2)
    assistant = TextAssistant()
    for age in (-1, 3, 8):
        assistant.update(Instances(tokens=tokens, ages=torch.full((6,), age)), torch.rand(6))
    assert assistant.num_documents == 6
    assert assistant.num_with_token.max() <= 6


def test_targets_are_above_the_mean_of_the_last_pass():
    instances, assistant = Instances(tokens=tokens_of(torch.tensor([[4], [6], [8], [10]]))), TextAssistant()

    def targets(*scores):
        return assistant.update(instances, torch.tensor(scores)).targets.tolist()

    targets(1.0, 2.0, 3.0, 6.0)
    targets(5.0, 5.0, 5.0, 5.0)
    assistant.begin_pass()
    for _ in range(2):  # the mean was 4, whatever this pass brings
        assert targets(0.0, 3.9, 4.1, 100.0) == [False, False, True, True]
    assistant.begin_pass()
    assert targets(26.0, 27.1, 0.0, 0.0) == [False, True, False, False]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"weight_decay": -1}, "weight_decay must"),
        ({"mean_decay": 1}, "mean_decay"),
        ({"pad_id": (0, 0, 0)}, "pad_id must be an id, one of source and target each, or None"),
        ({"pad_id": "<pad>"}, "pad_id must be"),
    ],
)
def test_bad_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        TextAssistant(**argument)


# ---- what is read of a batch


def rows_of(batch, batch_size, **settings):
    """Tokens of each sequence of each instance, in order."""
    rows = BatchTokens(**settings)(batch, batch_size)
    return [[[c // 2 for c in row if c >= 0 and c % 2 == s] for s in (0, 1)] for row in rows.tolist()]


@pytest.mark.parametrize("pad_id", [None, 3])
def test_a_pad_id_that_is_a_frequent_word_elsewhere_is_no_padding_there(pad_id):
    """Id 3 is the commonest word of all, and fills the ends."""
    texts = [[3, 5, 3, 3, 7], [3, 9], [3, 3, 3, 8, 3, 2], [3, 3, 4]]
    batch = torch.tensor([text + [3] * (6 - len(text)) for text in texts])
    assert rows_of(batch, 4, pad_id=pad_id) == [[text, []] for text in texts]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([[5, 6, 7, 2], [5, 2, 0, 0], [5, 6, 2, 0]], 0),  # one mark ends all texts
        ([[5, 6, 7, 9], [5, 0, 0, 0], [5, 6, 8, 0]], 0),  # none does
        ([[5, 6, 7, 2], [5, 6, 2, 0], [7, 7, 7, 2]], 0),  # lengths differ by one
        ([[5, 6, 7, 2], [5, 6, 2, 9], [7, 7, 7, 2]], 9),  # whatever the numbers
        ([[5, 6, 0, 0], [7, 2, 0, 0]], 0),  # padded to a fixed width
        ([[5, 6, 7, 9, 8], [7, 0, 0, 0, 0], [1, 8, 9, 8, 7]], 0),  # one short text among many
        ([[5, 6, 7, 2], [7, 2, 0, 0], [1, 8, 9, 2]], 0),
        ([[5, 6, 7, 3], [7, 2, 0, 0], [1, 8, 9, 2]], -1),  # one text that ends in a repetition
        ([[5, 6, 7, 2], [5, 8, 9, 2]], -1),  # of one length, with an end mark
        ([[5, 6, 7, 4], [5, 8, 9, 3]], -1),
        ([[5, 6, 7, 2], [5, 6, 2, 7], [5, 6, 7, 2], [5, 6, 2, 7]], -1),  # 2 and 7 follow each other: which is it?
        ([[5], [6]], -1),
    ],
)
def test_padding_is_found_where_the_batch_tells(tokens, expected):
    assert found_pad_id(torch.tensor(tokens)).item() == expected


def test_each_sequence_has_padding_of_its_own():
    source, target = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[5, 0, 9, 4], [0, 1, 1, 1]])
    expected = [[[5, 6, 7], [5, 0, 9, 4]], [[8], [0]]]
    assert rows_of((source, target), 2) == expected
    assert rows_of((source, target), 2, pad_id=(0, 1)) == expected
    assert rows_of({"target": target, "source": source}, 2, pad_id=(None, 0)) == [
        [[5, 0, 9, 4], [5, 6, 7]],
        [[0], [8]],
    ]


def test_a_tokenizers_batch_is_read_without_its_masks():
    batch = {
        "input_ids": torch.tensor([[101, 7, 102], [101, 102, 0]]),
        "token_type_ids": torch.zeros(2, 3, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[101, 7, 102], [101, 102, -100]]),
        "position": torch.tensor([[5, 6, 7], [5, 6, 7]]),  # a third sequence
        "weights": torch.rand(2, 3),
        "is_long": torch.tensor([[True], [False]]),
        "class": torch.tensor([4, 5]),
    }
    assert rows_of(batch, 2) == [[[101, 7, 102]] * 2, [[101, 102]] * 2]


def test_a_function_says_what_to_read():
    batch = torch.tensor([[[9, 5], [9, 6]], [[9, 7], [9, 8]]])
    assert rows_of(batch, 2, function=lambda batch: batch[:, :, 1]) == [[[5, 6], []], [[7, 8], []]]
    both = rows_of(batch, 2, function=lambda batch: (batch[:, :, 1], batch[:, :1, 0]))
    assert both == [[[5, 6], [9]], [[7, 8], [9]]]


def test_long_texts_are_cut_and_large_ids_are_folded():
    batch = torch.tensor([[MAX_TOKENS + 3, 4, 5, 6], [7, 0, 0, 0]])
    assert rows_of(batch, 2, max_tokens=2) == [[[3, 4], []], [[7], []]]


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        ((torch.rand(4, 5), torch.arange(4)), {}, r"holds no token ids, an integer tensor of shape \(4, T\)"),
        (torch.arange(4), {"function": lambda batch: batch}, r"must return token ids.*got torch.int64 \(4,\)"),
        (torch.arange(4), {"function": lambda batch: ()}, "one integer tensor of shape"),
    ],
)
def test_batches_without_tokens_are_refused(batch, settings, message):
    with pytest.raises(ValueError, match=message):
        BatchTokens(**settings)(batch, 4)


def test_at_least_one_token_is_read():
    with pytest.raises(ValueError, match="max_features must be at least 1"):
        BatchTokens(max_tokens=0)


# ---- what is remembered


def test_a_store_gives_back_what_was_put_in_whatever_the_order():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(-3, 50, (200, 12)))
    store, order = TokenStore(200), torch.from_numpy(rng.permutation(200))
    for chunk in order[:150].split(17):
        store.put(chunk, tokens_of(rows[chunk]))
    rows[order[150:]] = -1
    asked = torch.from_numpy(rng.integers(0, 200, 300))
    for one, other in zip(store.rows(asked), tokens_of(rows[asked]), strict=True):
        assert torch.equal(one, other)
    restored = TokenStore(200)
    restored.load_state_dict(store.state_dict())
    assert all(map(torch.equal, restored.rows(asked), store.rows(asked)))
    assert store.num_bytes == 200 * 12 + 6 * len(tokens_of(rows).columns)


def test_instances_keep_their_first_tokens_and_a_batch_may_hold_one_twice():
    store = InstanceStore(4)
    store.put_tokens(torch.tensor([2, 0, 2]), torch.tensor([[4, 6], [8, -1], [10, -1]]))
    store.put_tokens(torch.tensor([0, 1]), torch.tensor([[12], [14]]))
    tokens = store.rows(torch.tensor([0, 1, 2, 3]), ("tokens",)).tokens
    assert (tokens.columns.tolist(), tokens.sizes.tolist()) == ([8, 14, 4, 6], [1, 1, 2, 0])
    assert store.holds(torch.arange(4), ("tokens",)).tolist() == [True, True, True, False]


def test_a_batch_of_padding_only_is_refused():
    with pytest.raises(ValueError, match="no token ids but padding and masks"):
        InstanceStore(4).put_tokens(torch.arange(2), torch.full((2, 3), -1))


# ---- in training


def fit(module, data, callback, **options):
    pl.seed_everything(0, verbose=False)
    run = trainer(**{"max_epochs": 6, **options}, callbacks=[callback])
    run.fit(module, datamodule=data)
    return run


@pytest.mark.parametrize("lag", [0, 3])
def test_classification_remembers_the_texts_and_keeps_the_hard_ones(lag):
    callback = AutoAssistCallback(assistant="text", policy=AutoAssistPolicy(gamma=0.2), lag=lag)
    source = TextsData(400, 40)
    data = AutoAssistDataModule(source, budget=0.6)
    fit(BagOfWords(), data, callback, max_epochs=30)
    seen = callback.instances.seen.nonzero().flatten()
    assert len(seen) == 400
    tokens = callback.instances.rows(seen, ("tokens",)).tokens
    expected = [sorted(Counter((2 * text).tolist()).items()) for text in source.train_set.texts]
    bags = [part.tolist() for part in torch.stack([tokens.columns, tokens.counts], 1).split(tokens.sizes.tolist())]
    assert bags == [[list(entry) for entry in bag] for bag in expected]
    assert callback.assistant.num_documents == 400
    clear, random = callback.keep_probability(range(200)), callback.keep_probability(range(200, 400))
    assert random.mean() > clear.mean() + 0.15
    assert data.candidate_stream.num_considered > 1.2 * data.candidate_stream.num_kept


def test_translation_reads_source_and_target_and_keeps_the_hard_pairs():
    pairs = PairSet(400)
    callback = AutoAssistCallback(assistant="text", policy=AutoAssistPolicy(gamma=0.5, confidence_gate=True))
    loader = DataLoader(pairs, 10, shuffle=True, collate_fn=collate_pairs)
    fit(Translator(), AutoAssistDataModule(loader, budget=0.6), callback, max_epochs=12)
    assert callback.assistant.length_sum.tolist() == [sum(len(source) for source, _ in pairs.pairs)] * 2
    tokens = callback.instances.rows(torch.tensor([7]), ("tokens",)).tokens
    source, target = pairs[7]
    assert tokens.columns.tolist() == sorted(
        {2 * word for word in source.tolist()} | {2 * word + 1 for word in target.tolist()}
    )
    assert callback.policy.accuracy > 0.3
    assert callback.summary()["mean_keep_prob"] < 1


def test_the_level_is_the_mean_loss_of_the_pass_before():
    class Watching(TextAssistant):
        """Notes every score, by pass."""

        def __init__(self):
            super().__init__()
            self.passes = [[]]

        def begin_pass(self):
            super().begin_pass()
            assert self.last_mean == pytest.approx(np.mean(self.passes[-1]))
            self.passes.append([])

        def update(self, instances, scores):
            self.passes[-1] += scores.tolist()
            return super().update(instances, scores)

    callback = AutoAssistCallback(assistant=Watching())
    fit(BagOfWords(), AutoAssistDataModule(TextsData(200, 10), budget=0.6), callback, max_epochs=12)
    passes = callback.assistant.passes
    # 144 batches; the batch that ends the first pass belongs to it, wherever the second begins.
    assert len(passes) > 4
    assert len(passes[0]) in (190, 200)
    assert all(60 < len(one) <= 210 for one in passes[1:-1])


def test_a_language_model_reads_its_one_sequence():
    class LanguageModel(Translator):
        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    blocks = torch.randint(4, 40, (200, 9), generator=torch.Generator().manual_seed(0))
    callback = AutoAssistCallback(assistant="text")
    fit(LanguageModel(), AutoAssistDataModule(DataLoader(blocks, 10, shuffle=True), budget=0.6), callback)
    assert callback.assistant.length_sum.tolist() == [200 * 9, 0]
    assert callback.summary()["keep_rate"] < 1


def test_tokens_beyond_the_memory_are_not_remembered_and_their_instances_kept():
    callback = AutoAssistCallback(assistant="text", policy="autoassist", feature_memory=200 * 12 + 3000)
    with pytest.warns(UserWarning, match=r"of 200 instances take all of 5,400 bytes.*raise feature_memory="):
        fit(BagOfWords(), AutoAssistDataModule(TextsData(200, 10), budget=0.6), callback)
    remembered = callback.instances.has_features
    assert 20 < remembered.sum() < 180
    assert callback.instances.tokens.num_bytes <= 5400
    probs = callback.keep_probability(range(200))
    assert (probs[~remembered.numpy()] == 1).all()
    assert (probs[remembered.numpy()] < 1).all()


def test_batches_without_tokens_cost_no_run():
    class Floats(BagOfWords):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].long(), batch[1]), batch_idx)

    def floats(instances):
        texts, labels = collate(instances)
        return texts.float(), labels

    with pytest.warns(UserWarning, match="AutoAssist stopped filtering.*holds no token ids"):
        run = fit(
            Floats(),
            AutoAssistDataModule(TextsData(100, 10, collate_fn=floats), budget=0.6),
            AutoAssistCallback(assistant="text"),
        )
    assert run.global_step == 36


class TextStream(IterableDataset):
    def __iter__(self):
        return iter(TextSet(200))

    def __len__(self):
        return 200


def test_a_stream_is_filtered_by_its_texts_of_any_width():
    callback = AutoAssistCallback(assistant="text", policy=AutoAssistPolicy(gamma=0.2))
    loader = DataLoader(TextStream(), 10, collate_fn=collate)
    val_loader = TextsData().val_dataloader()
    data = AutoAssistDataModule(loader, budget=0.6, pad_values=PAD, val_dataloaders=val_loader)
    fit(BagOfWords(), data, callback, max_epochs=12)
    assert callback._learner.is_filtering
    assert callback.assistant.num_documents == 12 * 12 * 10
    # Rows of batches of different widths were joined, and padding was never taken for a word.
    assert callback.assistant.length_sum[0] / callback.assistant.num_documents < 10
    assert data.candidate_stream.num_considered > 1.2 * data.candidate_stream.num_kept
