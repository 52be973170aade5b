"""Pairs of the translation benchmark as numbers: what is held out, the joint vocabulary, and batches of them.

Every split is fixed: seeds change the network's parameters and the order of the instances, never the data.

Shapes: N pairs, B batch, S source and T target tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.common.training import LoadCounter
from benchmarks.translation.pairs import Pair, load_pairs
from lightning_autoassist import TokenBatchSampler

PAD, BEGIN, END, UNKNOWN = range(4)
# Of the twenty parts of the groups: what is tested on, and what is held out of the rest while rates are chosen.
TEST_SPLIT, TUNE_SPLIT = 0, 1
NUM_CURVE_PAIRS = 500

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
EINER = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn"
)
ZEHNER = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"


class Corpus(NamedTuple):
    """Pairs to train on, and pairs to measure on."""

    train: list[Pair]
    held_out: list[Pair]


def load_corpus(name: str, data_dir: Path, *, choosing: bool, max_words: int) -> Corpus:
    """The pairs of a data set that are short enough.

    Args:
        name: ``"en-de"``, or ``"numbers"``: the names of numbers, which take nothing to download and prove nothing.
        data_dir: Folder for downloads.
        choosing: Whether rates are being chosen: then the test set is not touched, a twentieth of the rest held out.
        max_words: Most words of a side.
    """
    pairs = number_pairs(3000) if name == "numbers" else load_pairs(data_dir)
    pairs = [pair for pair in pairs if max(len(pair.source.split()), len(pair.target.split())) <= max_words]
    measured = TUNE_SPLIT if choosing else TEST_SPLIT
    train = [pair for pair in pairs if pair.split not in {TEST_SPLIT, measured}]
    held_out = [pair for pair in pairs if pair.split == measured]
    # In an order of their own, so that the first of them are from all sources.
    held_out.sort(key=lambda pair: hashlib.sha256(pair.source.encode()).digest())
    return Corpus(train, held_out)


def number_pairs(count: int) -> list[Pair]:
    """Names of the numbers from 0, in English and German.

    Example:
        >>> number_pairs(43)[-1]
        Pair(group='42', source='forty two', target='zwei und vierzig')
    """
    return [Pair(str(number), _english(number), _german(number)) for number in range(count)]


def _english(number: int) -> str:
    ones = [*ONES.split(), "eighteen", "nineteen"]
    if number < 20:
        return ones[number]
    if number < 100:
        tens = TENS.split()[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens} {ones[number % 10]}"
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head = f"{_english(number // size)} {word}"
    return head if number % size == 0 else f"{head} and {_english(number % size)}"


def _german(number: int) -> str:
    ones = [*EINER.split(), "achtzehn", "neunzehn"]
    if number < 20:
        return ones[number]
    if number < 100:
        tens = ZEHNER.split()[number // 10 - 2]
        return tens if number % 10 == 0 else f"{ones[number % 10].removesuffix('s')} und {tens}"
    size, word = (1000, "tausend") if number >= 1000 else (100, "hundert")
    head = f"{_german(number // size).removesuffix('s')} {word}"
    return head if number % size == 0 else f"{head} {_german(number % size)}"


class Vocabulary:
    """Subwords of both languages.

    Args:
        model: Of sentencepiece, as bytes.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Tokens of each text, between a beginning and an end."""
        return [torch.tensor([BEGIN, *row, END], dtype=torch.int32) for row in self._processor.encode(list(texts))]

    def decode(self, tokens: Tensor) -> list[str]:
        """Texts of tokens, shape ``(B, T)``, each to its first end."""
        rows = [[token for token in row if token not in (PAD, BEGIN)] for row in tokens.tolist()]
        texts: list[str] = self._processor.decode([row[: row.index(END)] if END in row else row for row in rows])
        return texts


def learn_vocabulary(pairs: Sequence[Pair], size: int) -> Vocabulary:
    """Joint byte-pair subwords of both sides of the pairs; the same of the same pairs.

    Args:
        pairs: To train on.
        size: Of the vocabulary; fewer where there are not as many.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in pairs for text in (pair.source, pair.target)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=PAD,
        bos_id=BEGIN,
        eos_id=END,
        unk_id=UNKNOWN,
        num_threads=1,
        minloglevel=2,
    )
    return Vocabulary(model.getvalue())


def check_packages() -> None:
    """Raise ModuleNotFoundError unless what the benchmark needs is installed."""
    for name in ("sentencepiece", "sacrebleu"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f'{name} is not installed: pip install "lightning-autoassist[translation]"')


class TokenPairs(Dataset[tuple[Tensor, Tensor]]):
    """Tokenized pairs; counts how many are loaded, in worker processes too.

    Args:
        pairs: In words.
        vocabulary: Of both sides.

    Attributes:
        lengths: Tokens that go into the network, of source and target, shape ``(N, 2)``.
    """

    def __init__(self, pairs: Sequence[Pair], vocabulary: Vocabulary) -> None:
        self.sources = vocabulary.encode([pair.source for pair in pairs])
        self.targets = vocabulary.encode([pair.target for pair in pairs])
        # A target is read without its end, and predicted without its beginning.
        self.lengths: npt.NDArray[np.int64] = np.array(
            [(len(source), len(target) - 1) for source, target in zip(self.sources, self.targets, strict=True)]
        )
        self.loaded = LoadCounter()

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loaded.add()
        return self.sources[index], self.targets[index]


def join(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sources, shape ``(B, S)``, and targets, shape ``(B, T)``, int64, padded at their ends."""
    sources, targets = zip(*pairs, strict=True)
    return _padded(sources), _padded(targets)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=PAD).long()


class PairData(pl.LightningDataModule):
    """A shuffled train loader, and one of sources to translate.

    Args:
        corpus: To train on, and to measure on.
        vocabulary: Of both sides.
        max_tokens: Most source and target tokens in a batch together, padding included.
        is_packed: Whether the train loader packs batches by tokens itself; else that is left to AutoAssist.
        seed: Of the packing.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        max_tokens: int,
        *,
        is_packed: bool,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.train = TokenPairs(corpus.train, vocabulary)
        self.held_out = corpus.held_out
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.is_packed = is_packed
        self.seed = seed
        self.options: dict[str, Any] = {
            "collate_fn": join,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        if not self.is_packed:
            return DataLoader(self.train, shuffle=True, batch_size=64, **self.options)
        batches = TokenBatchSampler(
            RandomSampler(self.train), self.max_tokens, self.train.lengths, budget=1.0, seed=self.seed
        )
        return DataLoader(self.train, batch_sampler=batches, **self.options)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            source_batches(self.held_out[:NUM_CURVE_PAIRS], self.vocabulary), batch_size=None, collate_fn=None
        )


def source_batches(
    pairs: Sequence[Pair], vocabulary: Vocabulary, max_tokens: int = 4096
) -> list[tuple[Tensor, Tensor]]:
    """Batches of similar length to translate.

    Args:
        pairs: N pairs.
        vocabulary: Of the sources.
        max_tokens: About as many in a batch.

    Returns:
        Places among the pairs, shape ``(B,)``, and sources, shape ``(B, S)``, of each batch.
    """
    sources = vocabulary.encode([pair.source for pair in pairs])
    batches: list[tuple[Tensor, Tensor]] = []
    places = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    while places:
        count = max(1, max_tokens // len(sources[places[min(len(places), 256) - 1]]))
        taken, places = places[:count], places[count:]
        batches.append((torch.tensor(taken), _padded([sources[place] for place in taken])))
    return batches
