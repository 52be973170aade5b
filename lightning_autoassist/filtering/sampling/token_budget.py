"""How many tokens a batch may have, and how long the instances of a data set are.

Shapes: N data set, C lengths of an instance (such as source and target).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_autoassist.filtering.sampling.candidate_sources import num_candidates
from lightning_autoassist.filtering.sampling.indexed_data import length_of
from lightning_autoassist.filtering.sampling.token_batches import (
    TokenBatchSampler,
    check_longest,
    check_max_tokens,
    indices_in,
    tokens_per_pass,
)
from lightning_autoassist.filtering.sampling.token_lengths import (
    length_array,
    longest_sequence,
    read_lengths,
    stored_lengths,
)
from lightning_autoassist.trainer_support.arguments import received

Lengths = Callable[[Any], Any] | Sequence[Any] | npt.NDArray[Any] | Tensor


class TokenBudget:
    """A budget of tokens for the batches of whatever data set comes, and where its lengths come from.

    Args:
        max_tokens: Most tokens in a batch, padding included.
        lengths: Of the instances, or a function that gets one and returns its length or lengths. None: the data set's
            attribute ``lengths``, else one reading of the whole data set. For a stream see ``RowLengths``.

    Raises:
        ValueError: If ``max_tokens`` is not positive.
    """

    def __init__(self, max_tokens: int, lengths: Lengths | None = None) -> None:
        self.max_tokens = check_max_tokens(max_tokens)
        self.lengths = lengths
        self._measured: tuple[Any, npt.NDArray[np.int64]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for loggers, without an array of lengths."""
        given = "given for each instance" if self.lengths is not None else None
        return {"max_tokens": self.max_tokens, "lengths": self.lengths if callable(self.lengths) else given}

    def sampler_maker(
        self, dataset: Any, candidates: Any, owned: Any, **options: Any
    ) -> Callable[[], TokenBatchSampler]:
        """What makes the batches of a data set's candidates, of the lengths that its instances have now.

        Args:
            dataset: The user's.
            candidates: Of one pass of all processes.
            owned: Those of this process; of the same number in all of them.
            options: Of :class:`TokenBatchSampler`.

        Raises:
            ValueError: See :class:`TokenBatchSampler`; also if there is not one length for each instance.
        """
        lengths = self.lengths_of(dataset)
        check_longest(lengths, indices_in(candidates), self.max_tokens)
        # Equal shares, so that every process has as many batches, whoever owns the long ones.
        total = tokens_per_pass(candidates, lengths) * num_candidates(owned) / max(1, num_candidates(candidates))
        if owned is not candidates:  # which does not tell that it leaves out what the candidates leave out
            lengths = np.minimum(lengths, self.max_tokens)
        return functools.partial(TokenBatchSampler, owned, self.max_tokens, lengths, total_tokens=total, **options)

    def for_rows(self) -> dict[str, Any]:
        """Options of a ``RowStream`` whose batches have this budget.

        Raises:
            MisconfigurationException: If lengths are given one by one: rows of a stream have no indices.
        """
        if self.lengths is not None and not callable(self.lengths):
            raise MisconfigurationException(
                "the rows of a stream have no indices, so lengths= must be a function: it gets a batch of the loader "
                f"and returns a number for each of its rows; got {received(self.lengths)}"
            )
        return {"max_tokens": self.max_tokens, "lengths": self.lengths}

    def lengths_of(self, dataset: Any) -> npt.NDArray[np.int64]:
        """Lengths of all instances, shape ``(N, C)``; a data set that has to be read is read once only."""
        given = self.lengths if self.lengths is not None else stored_lengths(dataset)
        num_instances = length_of(dataset)
        if num_instances is None:
            if given is None or callable(given):
                raise ValueError(
                    f"the data set ({type(dataset).__name__}) has no length, so it cannot be read for the lengths of "
                    "its instances; define its __len__, or give lengths=, a number for each instance"
                )
            return length_array(given)
        if not num_instances:
            raise ValueError("the data set is empty; filtering needs at least one batch of instances")
        if self._measured is None or self._measured[0] is not dataset or len(self._measured[1]) != num_instances:
            if given is None or callable(given):
                given = read_lengths(dataset, longest_sequence if given is None else given)
            lengths = length_array(given)
            if len(lengths) != num_instances:
                raise ValueError(
                    f"lengths= holds {len(lengths)} lengths, and the data set has {num_instances} instances; give one "
                    "for each instance"
                )
            self._measured = dataset, lengths
        return self._measured[1]


def token_budget(max_tokens: int | None, lengths: Lengths | None) -> TokenBudget | None:
    """The budget of tokens that is asked for, if any.

    Raises:
        ValueError: If ``max_tokens`` is not positive, or ``lengths`` are given without it.
    """
    if max_tokens is not None:
        return TokenBudget(max_tokens, lengths)
    if lengths is not None:
        raise ValueError("lengths= is used for batches of tokens only; give max_tokens= as well")
    return None
