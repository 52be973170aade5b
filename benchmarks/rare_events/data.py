"""Two classes, one of them rare: a forest cover type against the other six, or a section of Debian's packages.

Shapes: N instances, F features, B batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from benchmarks.common.training import LoadCounter
from benchmarks.text.data import MIN_DOCUMENTS, package_descriptions, words_of
from lightning_autoassist.demo import rare_events as demo
from lightning_autoassist.demo.rare_events import Events, EventSplit, load_cover_type, split_events, split_rows

COVTYPE_SETS = {"covtype-4": 4, "covtype-5": 5, "covtype-7": 7}  # 0.5, 1.6 and 3.5 % positives
SECTION_SETS = {"debian-sound": "sound"}  # the rarest of the 20 sections, 2.0 % positives
MADE = "made"
RARE_SETS = (*COVTYPE_SETS, *SECTION_SETS, MADE)
NUM_TOPICS = 128


def load_events(name: str, data_dir: Path, *, choosing: bool) -> EventSplit:
    """A data set, split by a fixed seed. The training instances are the same in both phases.

    Args:
        name: In ``RARE_SETS``.
        data_dir: Where the data are, or are downloaded to.
        choosing: Whether to choose learning rates: then the held-out instances take the test instances' place.

    Raises:
        FileNotFoundError: If the data are not there and cannot be downloaded.
    """
    if name == MADE:
        return split_events(*made(), choosing=choosing)
    if name in SECTION_SETS:
        return split_events(*descriptions(SECTION_SETS[name], data_dir), choosing=choosing)
    return load_cover_type(COVTYPE_SETS[name], data_dir, choosing=choosing)


def made() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Two Gaussian clouds that overlap, 2,400 instances of 10 features, 6 % rare: the same at each call."""
    rng = np.random.default_rng(0)
    is_rare = rng.random(2_400) < 0.06
    features = rng.normal(size=(2_400, 10)) + 0.8 * is_rare[:, None]
    return features.astype(np.float32), is_rare


def descriptions(section: str, data_dir: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Descriptions of packages as 128 topics, made on the training rows, and whether each is of a section.

    Topics are latent semantic analysis: the first singular vectors of the words' TF-IDF.

    Args:
        section: Debian's.
        data_dir: Where the descriptions are kept.

    Raises:
        FileNotFoundError: If they are not there and cannot be made.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    documents = package_descriptions(data_dir)
    texts = [document.text for document in documents]
    words = TfidfVectorizer(analyzer=words_of, min_df=MIN_DOCUMENTS, sublinear_tf=True)
    topics = make_pipeline(words, TruncatedSVD(NUM_TOPICS, random_state=0))
    topics.fit([texts[row] for row in split_rows(len(texts))[0]])
    features = topics.transform(texts).astype(np.float32)
    return features, np.array([document.label == section for document in documents])


class EventRows(demo.EventRows):
    """Instances that are read a batch at a time, counting how many were.

    Args:
        events: The data.
    """

    def __init__(self, events: Events) -> None:
        super().__init__(events)
        self.loads = LoadCounter()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loads.add()
        return super().__getitem__(index)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self.loads.add(len(indices))
        return super().__getitems__(indices)


class EventData(demo.EventData):
    """A shuffled train loader, and one of the instances that are measured on.

    Args:
        split: The instances.
        batch_size: B.
    """

    train: EventRows

    def __init__(self, split: EventSplit, batch_size: int) -> None:
        super().__init__(split, batch_size)
        self.train, self.held_out = EventRows(split.train), EventRows(split.held_out)
