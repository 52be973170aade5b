"""Candidates of a stream: the rows of the batches that a loader without indices gives, pass after pass.

Shapes: B batch, n rows of a fetched batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.filtering.sampling.columns import Column
from lightning_autoassist.filtering.sampling.rows import Form, PadValues, RowSplitter
from lightning_autoassist.filtering.sampling.stream_reading import StreamReader

# Batches that are looked through after a resume, for one of the kind of a batch that is to be built again.
MAX_LOOKED_AHEAD = 256
# Forms of so many kinds are remembered, beside those of which rows wait.
MAX_FORMS = 64


class Fetched(NamedTuple):
    """A batch of the loader, taken apart.

    Attributes:
        batch: The batch as the loader gave it.
        columns: Its rows.
        form: The batch without its rows.
    """

    batch: Any
    columns: list[Column]
    form: Form

    @property
    def num_rows(self) -> int:
        """n; 0 of a batch without instances."""
        return len(self.columns[0]) if self.columns else 0

    @property
    def integers(self) -> dict[str, Tensor]:
        """The columns that may be labels, see :func:`integers_of`."""
        return integers_of(self.columns, self.form)


class RowSource:
    """A loader's batches, taken apart into rows.

    Args:
        loader: Iterable of batches; iterated anew for every pass.
        batch_size: See ``RowSplitter``.
        pad_values: See ``RowSplitter``.

    Attributes:
        reader: Iterates the loader.
        splitter: Takes batches apart.
    """

    def __init__(self, loader: Iterable[Any], batch_size: int | None, pad_values: PadValues) -> None:
        self.reader = StreamReader(loader)
        self.splitter = RowSplitter(batch_size, pad_values)
        self._forms: dict[str, Form] = {}

    @property
    def pass_index(self) -> int:
        """Number of the pass, from 0."""
        return self.reader.pass_index

    @pass_index.setter
    def pass_index(self, number: int) -> None:
        self.reader.pass_index = number

    def fetch(self, waiting_kinds: Collection[str]) -> Fetched:
        """The next batch.

        Args:
            waiting_kinds: Kinds of rows whose form may still be asked for.

        Raises:
            MisconfigurationException: If the loader yields nothing, or only once.
        """
        batch = self.reader.next_batch()
        fetched = Fetched(batch, *self.splitter.take_apart(batch))
        self.reader.count(fetched.num_rows)
        if len(self._forms) > MAX_FORMS + len(waiting_kinds):
            self._forms = {kind: form for kind, form in self._forms.items() if kind in waiting_kinds}
        self._forms[fetched.form.kind] = fetched.form
        return fetched

    def form(self, kind: str) -> Form | None:
        """The form of a kind of rows; None where no such batch has come since a resume."""
        return self._forms.get(kind)

    def look_for(self, kinds: Iterable[str]) -> None:
        """Find the forms of kinds among the batches that come, none of which is taken: after a resume."""
        missing = set(kinds) - self._forms.keys()
        if not missing:
            return
        for batch in islice(self.reader.peek(), MAX_LOOKED_AHEAD):
            _, form = self.splitter.take_apart(batch)
            self._forms[form.kind] = form
            missing.discard(form.kind)
            if not missing:
                break
        self.reader.rewind()

    def state_dict(self) -> dict[str, Any]:
        """The place in the pass, and what was learnt of the batches: builtins, and the loader's own state."""
        return {**self.reader.state_dict(), "splitter": self.splitter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; where the loader has no state of its own, its current pass begins anew."""
        self.reader.load_state_dict(state)
        self.splitter.load_state_dict(state["splitter"])


def integers_of(columns: Iterable[Column], form: Form) -> dict[str, Tensor]:
    """The columns that may be labels: integer tensors of shape ``(n,)``, by their paths."""
    return {
        path: column
        for path, column in zip(form.paths, columns, strict=True)
        if isinstance(column, Tensor)
        and column.ndim == 1
        and not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
    }
