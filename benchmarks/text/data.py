"""Documents of the text benchmark: Debian's package descriptions by their section, or small ones made up.

Every split is fixed: seeds change the network's parameters and the order of the instances, never the data.

Shapes: N instances, C classes, B batch, T positions of the batch's longest text.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from benchmarks.common.apt import PrivateApt
from benchmarks.common.training import LoadCounter

NUM_SECTIONS = 20
PAD, UNKNOWN, FIRST_WORD = 0, 1, 2
# A word of fewer training documents is as good as unknown.
MIN_DOCUMENTS = 3
# Of 36 documents 6 are for testing; while learning rates are chosen, 5 of the others take their place.
TEST_RATIO, HELD_OUT_RATIO = 6 / 36, 5 / 36


class Document(NamedTuple):
    """A text, what it is called, and its class."""

    name: str
    label: str
    text: str


class Texts(NamedTuple):
    """Token ids of N texts, each of shape ``(T_i,)``, int64, and labels, shape ``(N,)``, int64."""

    tokens: list[Tensor]
    labels: Tensor


class TextSplit(NamedTuple):
    """What to train on, what to measure accuracy on, and how many token ids and classes there are."""

    train: Texts
    held_out: Texts
    num_tokens: int
    num_classes: int


def package_descriptions(data_dir: Path) -> list[Document]:
    """Descriptions of Debian's packages, one of each source package, of the 20 sections that have the most.

    Made from apt's package lists, about 20 MB, at the first call; read from ``data_dir`` afterwards.

    Args:
        data_dir: Where they are kept, and apt's lists.

    Raises:
        FileNotFoundError: If they are not there, and the machine has no apt to make them from.
        RuntimeError: If apt cannot fetch its lists, or the machine's sources have no descriptions.
    """
    path = data_dir.expanduser() / "debian-descriptions.json.gz"
    if not path.exists():
        documents = _extracted(data_dir / "apt")
        part = path.with_suffix(".part")
        part.write_bytes(gzip.compress(json.dumps(documents).encode(), mtime=0))
        part.replace(path)
    return [Document(*document) for document in json.loads(gzip.decompress(path.read_bytes()))]


def _extracted(folder: Path) -> list[Document]:
    apt = PrivateApt(folder, ("en",))
    apt.update()
    texts = {
        stanza["Description-md5"]: stanza["Description-en"]
        for path in apt.index_files("Translations", "en")
        for stanza in apt.stanzas(path)
        if "Description-en" in stanza
    }
    of_source: dict[str, Document] = {}
    for path in apt.index_files("Packages"):
        for stanza in apt.stanzas(path):
            # A source's binary packages share much of their descriptions: the first one stands for all.
            source = stanza.get("Source", stanza["Package"]).partition(" ")[0]
            text = texts.get(stanza.get("Description-md5", ""))
            if text is not None and "Section" in stanza:
                of_source.setdefault(source, Document(source, stanza["Section"], text))
    if not of_source:
        raise RuntimeError(
            f"the lists in {folder} hold no descriptions: Debian's (or Ubuntu's) main section has to be among the "
            "sources of /etc/apt; `docker run -it debian:bookworm` has it"
        )
    by_text = {document.text: document for document in reversed(of_source.values())}
    sections = Counter(document.label for document in by_text.values()).most_common(NUM_SECTIONS)
    largest = {section for section, _ in sections}
    return sorted(document for document in by_text.values() if document.label in largest)


def made_documents(data_dir: Path) -> list[Document]:
    """1,200 texts of four classes, made of few words that tell the class among many that do not.

    Args:
        data_dir: Not used.
    """
    rng = np.random.default_rng(0)
    documents = []
    for number in range(1200):
        label = number % 4
        length = int(rng.integers(5, 40))
        common = rng.zipf(1.5, length) % 200
        telling = 1000 + 10 * label + rng.integers(0, 10, length)
        words = np.where(rng.random(length) < 0.15, telling, common)
        documents.append(Document(f"made-{number}", f"class {label}", " ".join(f"w{word}" for word in words)))
    return documents


TEXT_SETS: dict[str, Callable[[Path], list[Document]]] = {
    "debian-descriptions": package_descriptions,
    "made": made_documents,
}


def words_of(text: str) -> list[str]:
    """The words of a text, and its numbers, in lower case."""
    return re.findall(r"[a-z]+[0-9]*|[0-9]+", text.lower())


def load_texts(name: str, data_dir: Path, *, choosing: bool, max_length: int) -> TextSplit:
    """What to train on, and what to measure accuracy on.

    Args:
        name: In ``TEXT_SETS``.
        data_dir: Where data are kept.
        choosing: Whether to choose learning rates: then a part of the training texts takes the test texts' place.
        max_length: Words of a text; what is longer is cut.
    """
    documents = TEXT_SETS[name](data_dir)
    labels = sorted({document.label for document in documents})
    words = [words_of(document.text)[:max_length] for document in documents]
    places = np.array([zlib.crc32(document.name.encode()) % 36 / 36 for document in documents])
    is_test = places < TEST_RATIO
    is_held_out = (places < TEST_RATIO + HELD_OUT_RATIO) & ~is_test
    train = ~is_test & ~is_held_out if choosing else ~is_test

    frequency = Counter(word for row in np.flatnonzero(train) for word in set(words[row]))
    known = sorted(word for word, count in frequency.items() if count >= MIN_DOCUMENTS)
    ids = {word: number for number, word in enumerate(known, FIRST_WORD)}

    def texts(chosen: Any) -> Texts:
        rows = np.flatnonzero(chosen)
        tokens = [torch.tensor([ids.get(word, UNKNOWN) for word in words[row]] or [UNKNOWN]) for row in rows]
        return Texts(tokens, torch.tensor([labels.index(documents[row].label) for row in rows]))

    held_out = texts(is_held_out if choosing else is_test)
    return TextSplit(texts(train), held_out, FIRST_WORD + len(ids), len(labels))


class CountedTexts(Dataset[tuple[Tensor, Tensor]]):
    """Texts one by one, counting how many were loaded, in whichever process."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.targets = texts.labels
        self.loads = LoadCounter()

    def __len__(self) -> int:
        return len(self.texts.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loads.add()
        return self.texts.tokens[index], self.texts.labels[index]


def collate(instances: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Tokens, padded to the longest, shape ``(B, T)``, and labels, shape ``(B,)``."""
    tokens, labels = zip(*instances, strict=True)
    return pad_sequence(list(tokens), batch_first=True, padding_value=PAD), torch.stack(labels)


class TextData(pl.LightningDataModule):
    """A shuffled train loader, and one of the texts that measure accuracy.

    Args:
        split: The data.
        batch_size: B.
        num_workers: Processes that load.
    """

    def __init__(self, split: TextSplit, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.train = CountedTexts(split.train)
        self.held_out = CountedTexts(split.held_out)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train,
            self.batch_size,
            shuffle=True,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, 256, collate_fn=collate)
