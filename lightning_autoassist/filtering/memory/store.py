"""What is remembered of each instance: reduced features or tokens, label, last score.

Shapes: N data set, B batch, n candidates, F features, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.dynamics import InstanceDynamics
from lightning_autoassist.filtering.memory.feature_file import FeatureFile, FeaturePlace
from lightning_autoassist.filtering.memory.features import bounded
from lightning_autoassist.filtering.memory.frame import frame_of
from lightning_autoassist.filtering.memory.index_rows import GrowingRows, padded
from lightning_autoassist.filtering.memory.instances import FROM_BATCHES, Instances
from lightning_autoassist.filtering.memory.own_columns import ColumnStarts, InstanceMemory, OwnColumns
from lightning_autoassist.filtering.memory.tokens import TokenStore, tokens_of

if TYPE_CHECKING:
    import pandas as pd

FEATURE_MEMORY = 256 * 2**20
COPIED_AT_ONCE = 2**14  # rows
# Columns of the store beside the features.
REMEMBERED = ("has_features", "labels", "scores", "seen", "observed_at")


class KnownLabels(NamedTuple):
    """Classes of instances that the model need not have seen.

    Attributes:
        labels: Shape ``(N,)``; negative where an instance has no class, or none is known.
        are_given: Whether the user gave them, so that no target of a loss says otherwise.
    """

    labels: npt.NDArray[np.int32]
    are_given: bool


# Gets whether the data set is to be looked into; labels that the user gave are there either way.
LabelSource = Callable[[bool], "KnownLabels | None"]


class InstanceStore(GrowingRows):
    """One row for each of the N instances, on the CPU.

    Label, score, its time and flags take 14 bytes an instance, training dynamics 24, features F·2 bytes. Features are
    allocated when the first ones arrive: in memory, and then in every checkpoint, or in a file (see
    ``FeatureFile``) where they would take more than ``feature_memory``. Tokens (see ``TokenStore``) grow with the
    instances that are seen; once they take as much, those of further instances are not remembered, with one warning.

    Args:
        num_instances: N.
        feature_memory: Most bytes that features, or tokens, may take in memory.
        place: Where a feature file lies.
        dynamics: Whether training dynamics are kept.

    Attributes:
        dynamics: How each instance's loss went; None where that is not kept.
    """

    def __init__(
        self,
        num_instances: int,
        feature_memory: int = FEATURE_MEMORY,
        place: FeaturePlace | None = None,
        *,
        dynamics: bool = False,
    ) -> None:
        self.num_instances = num_instances
        self.features: Tensor | None = None
        self.tokens: TokenStore | None = None
        self.has_features = torch.zeros(num_instances, dtype=torch.bool)
        self.labels: Tensor | None = None
        # Where the labels of instances that the model has not seen are from: "data", "given" or nowhere.
        self.labels_from: str | None = None
        self.scores = torch.zeros(num_instances)
        self.seen = torch.zeros(num_instances, dtype=torch.bool)
        self._feature_memory = feature_memory
        self._place = FeaturePlace() if place is None else place
        self._file: FeatureFile | None = None
        self._is_full = False
        self.observed_at = torch.full((num_instances,), -1, dtype=torch.int32)
        self.num_batches = 0
        self.owned: dict[str, OwnColumns] = {}
        self._restored_owned: dict[str, Any] = {}
        self.dynamics = InstanceDynamics(num_instances) if dynamics else None

    @override
    def __len__(self) -> int:
        return len(self.seen)

    @override
    def _grow(self, num_rows: int) -> None:
        if self._file is not None:
            raise ValueError(
                "the data set has grown, and the file of its features cannot grow with it; raise feature_memory= to "
                "keep the features in memory"
            )
        for name in REMEMBERED:
            column = getattr(self, name)
            if column is not None:
                setattr(self, name, padded(column, num_rows, -1 if name in ("observed_at", "labels") else 0))
        for owned in self.owned.values():
            owned.grow(num_rows)
        if self.features is not None:
            self.features = padded(self.features, num_rows)
        if self.tokens is not None:
            self.tokens.grow(num_rows)
        if self.dynamics is not None:
            self.dynamics.grow(num_rows)

    def own(self, owner: str, starts: ColumnStarts) -> None:
        """Have columns of an owner's: ``"assistant"`` or ``"policy"``; what a checkpoint had of them is restored."""
        if starts:
            self.owned[owner] = OwnColumns(len(self), starts)
            self.owned[owner].load_state_dict(self._restored_owned.pop(owner, {}))

    def rows(self, indices: Tensor, columns: Sequence[str] = Instances._fields, owner: str | None = None) -> Instances:
        """Gather the named columns of some instances.

        Args:
            indices: Shape ``(n,)``, int64.
            columns: A subset of ``{"features", "labels", "scores", "ages", "tokens", "indices"}``.
            owner: Whose own columns go with them.
        """
        if not columns and owner not in self.owned:
            return Instances()
        gathered: dict[str, Any] = {}
        for name in ("features", "labels", "scores"):
            values: Tensor | None = getattr(self, name) if name in columns else None
            if values is not None:
                # index_select, not values[indices]: several times faster for rows of half precision.
                gathered[name] = values.index_select(0, indices)
        if "ages" in columns:
            observed_at = self.observed_at.index_select(0, indices)
            gathered["ages"] = (self.num_batches - 1 - observed_at).where(observed_at >= 0, -1)
        if self.tokens is not None and "tokens" in columns:
            gathered["tokens"] = self.tokens.rows(indices)
        if "indices" in columns:
            gathered["indices"] = indices
        if owner in self.owned:
            gathered["memory"] = InstanceMemory(self.owned[owner], indices)
        return Instances(**gathered)

    def holds(self, indices: Tensor, columns: Sequence[str]) -> Tensor:
        """Whether features or tokens are remembered of each instance, where ``columns`` name them; ``(n,)``, bool."""
        if any(name in columns for name in FROM_BATCHES):
            return self.has_features.index_select(0, indices)
        return torch.ones(len(indices), dtype=torch.bool)

    def knows(self, indices: Tensor, columns: Sequence[str]) -> Tensor:
        """Whether each instance was seen and :meth:`holds` what ``columns`` name; shape ``(n,)``, bool."""
        seen = self.seen.index_select(0, indices)
        return seen & self.holds(indices, columns) if any(name in columns for name in FROM_BATCHES) else seen

    def put_features(self, indices: Tensor, features: Tensor) -> None:
        """Remember features, shape ``(n, F)``, any floating dtype; values that half precision cannot hold are bounded.

        An instance keeps the first features it was given.

        Raises:
            ValueError: If F differs from that of earlier features.
        """
        if self.features is None:
            self.features = self._room_for(features.shape[1])
        if features.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"an instance has {features.shape[1]} features where earlier ones had {self.features.shape[1]}; "
                "pass features= to give every batch the same number"
            )
        new = ~self.has_features[indices]
        indices, features = indices[new], features[new]
        self.features[indices] = bounded(features)
        self.has_features[indices] = True
        if self._file is not None:
            self._file.mark(indices)

    def put_tokens(self, indices: Tensor, rows: Tensor) -> None:
        """Remember tokens; an instance keeps those it was given first.

        Args:
            indices: Shape ``(n,)``, int64.
            rows: Of columns, shape ``(n, W)``, integer; see ``tokens``.

        Raises:
            ValueError: If there is no token in any row.
        """
        if not (rows >= 0).any():
            raise ValueError("the batch holds no token ids but padding and masks; pass features= to return them")
        if self.tokens is None:
            self.tokens = TokenStore(len(self))
        _, first = np.unique(indices.numpy(), return_index=True)  # a batch may hold an instance twice
        new = torch.from_numpy(np.sort(first))
        new = new[~self.has_features[indices[new]]]
        tokens = tokens_of(rows[new])
        if self.tokens.num_bytes + 6 * len(tokens.columns) > self._feature_memory:
            self._warn_that_memory_is_full()
            return
        self.tokens.put(indices[new], tokens)
        self.has_features[indices[new]] = True

    def put_labels(self, indices: Tensor, labels: Tensor) -> None:
        """Remember integer labels, shape ``(n,)``."""
        if self.labels is None:
            self.labels = torch.full((len(self),), -1, dtype=torch.int32)
        self.labels.numpy()[indices.numpy()] = labels.numpy()  # ten times as fast as torch on a batch

    def has_labels(self, indices: Tensor, labels: Tensor) -> bool:
        """Whether these integer labels, shape ``(n,)``, are the ones remembered."""
        return self.labels is not None and np.array_equal(self.labels.numpy().take(indices.numpy()), labels.numpy())

    def know_labels(self, known: KnownLabels) -> None:
        """Remember labels of instances that the model has not seen, or of all of them where the user gave them."""
        labels = torch.full((len(self),), -1, dtype=torch.int32)
        count = min(len(labels), len(known.labels))
        labels[:count] = torch.from_numpy(known.labels[:count])
        keeps = self.labels is not None and not known.are_given
        self.labels = torch.where(self.seen, self.labels, labels) if keeps and self.labels is not None else labels
        self.labels_from = "given" if known.are_given else "data"

    def forget_unseen_labels(self) -> None:
        """Keep the labels of those instances alone that the model has seen."""
        assert self.labels is not None
        self.labels[~self.seen] = -1
        self.labels_from = None

    def forget_labels(self) -> None:
        """Remember no labels but those that the user gave."""
        if self.labels_from != "given":
            self.labels = self.labels_from = None

    def put_scores(self, indices: Tensor, scores: Tensor) -> None:
        """Remember one batch's scores, shape ``(n,)``, and mark the instances as seen."""
        places = indices.numpy()
        self.scores.numpy()[places] = scores.numpy()
        self.seen.numpy()[places] = True
        self.observed_at.numpy()[places] = self.num_batches
        self.num_batches += 1

    def forget(self, indices: Tensor) -> None:
        """Mark instances as unseen, so that they are kept when they come up again."""
        self.seen[indices] = False
        for owned in self.owned.values():
            owned.forget(indices)

    def forget_everything(self) -> None:
        """Remember nothing of any instance."""
        self.seen.zero_()
        for owned in self.owned.values():
            owned.forget()
        if self.dynamics is not None:
            self.dynamics.forget()
        self.forget_features()
        self.forget_labels()

    def forget_features(self) -> None:
        """Remember neither features nor tokens of any instance."""
        self.has_features.zero_()
        self.features = self.tokens = self._file = None

    def to_frame(self) -> pd.DataFrame:
        """What is known of each instance, one row each: the columns are those of ``frame.COLUMNS``.

        Raises:
            ModuleNotFoundError: If pandas is missing.
        """
        return frame_of(self)

    def state_dict(self) -> dict[str, Any]:
        """All columns, as tensors or None, and the number of batches; of features in a file, which file it is."""
        return {
            "features": self.features if self._file is None else None,
            "feature_file": None if self._file is None else self._file.state_dict(),
            "tokens": None if self.tokens is None else self.tokens.state_dict(),
            "num_instances": self.num_instances,
            "num_batches": self.num_batches,
            "labels_from": self.labels_from,
            "dynamics": None if self.dynamics is None else self.dynamics.state_dict(),
            "owned": {owner: owned.state_dict() for owner, owned in self.owned.items()},
            **{name: getattr(self, name) for name in REMEMBERED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`. Where a feature file is gone, features have to be gathered again.

        Raises:
            ValueError: If the state is of another number of instances.
        """
        if state["num_instances"] != self.num_instances:
            raise ValueError(
                f"the state remembers {state['num_instances']} instances, the data set has {self.num_instances}; "
                "resume with the data set of the interrupted run"
            )
        self.num_batches = state["num_batches"]
        for name in REMEMBERED:
            setattr(self, name, None if state[name] is None else state[name].clone())
        self.labels_from = state["labels_from"]
        self._restored_owned = dict(state["owned"])
        if self.dynamics is not None:
            self.dynamics = InstanceDynamics(len(self))
            if state.get("dynamics") is not None:  # not in checkpoints of before
                self.dynamics.load_state_dict(state["dynamics"])
        self.features, self._file, self.tokens = None, None, None
        if state["tokens"] is not None:
            self.tokens = TokenStore(len(self))
            self.tokens.load_state_dict(state["tokens"])
        if state["feature_file"] is not None:
            self._load_features_of(state["feature_file"])
        elif state["features"] is not None:
            self._copy_features(state["features"])

    def _load_features_of(self, file_state: dict[str, Any]) -> None:
        try:
            file = FeatureFile.find(file_state, self._place)
            if not file.holds(self.has_features):
                raise OSError(f"{file.path} lacks features that the checkpoint refers to")
        except OSError as error:
            self.has_features.zero_()
            # Not on rank zero alone: every process has a file of its own.
            warnings.warn(
                f"the checkpoint's features could not be loaded: {error}. They are gathered again as instances come "
                "up, each of which is kept until then; put the file beside the checkpoint to resume exactly",
                stacklevel=2,
            )
            return
        if file.is_ours and self._is_large(file.values.shape[1]) and not file.is_shared(self.has_features):
            file.keep(self.has_features)  # what was written after the checkpoint was never seen by this run
            self.features, self._file = file.values, file
        else:
            self._copy_features(file.values)

    def _copy_features(self, features: Tensor) -> None:
        self.features = self._room_for(features.shape[1])
        for rows in self.has_features.nonzero()[:, 0].split(COPIED_AT_ONCE):
            self.features[rows] = features[rows]
            if self._file is not None:
                self._file.mark(rows)

    def _warn_that_memory_is_full(self) -> None:
        if not self._is_full:
            self._is_full = True
            warnings.warn(
                f"the tokens of {int(self.has_features.sum()):,} of {len(self):,} instances take all of "
                f"{self._feature_memory:,} bytes: those of the others are not remembered, and they are always kept; "
                "raise feature_memory=",
                stacklevel=2,
            )

    def _is_large(self, num_features: int) -> bool:
        return 2 * len(self) * num_features > self._feature_memory

    def _room_for(self, num_features: int) -> Tensor:
        """Zeros, shape ``(N, F)``, half precision, in memory or in a file."""
        shape = len(self), num_features
        if self._is_large(num_features):
            try:
                self._file = FeatureFile.create(self._place, shape)
            except OSError as error:
                warnings.warn(
                    f"no file could be made for {2 * shape[0] * shape[1]:,} bytes of features ({error}): they stay in "
                    "memory, and go into every checkpoint",
                    stacklevel=2,
                )
            else:
                return self._file.values
        return torch.zeros(shape, dtype=torch.half)
