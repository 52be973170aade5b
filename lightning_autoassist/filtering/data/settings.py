"""What a user asks of the data module, beside the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_autoassist.filtering.data.data_checks import check_lengths, check_pad_values
from lightning_autoassist.filtering.data.known_labels import LabelArray, Labels, check_labels
from lightning_autoassist.filtering.sampling.candidate_sources import check_budget
from lightning_autoassist.filtering.sampling.rows import PadValues
from lightning_autoassist.filtering.sampling.token_budget import Lengths, TokenBudget, token_budget
from lightning_autoassist.trainer_support.arguments import check_flag, check_whole


@dataclass(frozen=True)
class DataSettings:
    """Settings of :class:`~lightning_autoassist.AutoAssistDataModule`, checked.

    Attributes:
        budget: Share of an unfiltered run's batches, in (0, 1].
        seed: Decides, with the scores, which instances are kept; None: torch's initial seed.
        flatten: Whether candidates are taken one by one from a batch sampler of the user's own.
        tokens: The budget of tokens of a batch; None where batches have a fixed number of instances.
        steps_per_epoch: K, for data without a length.
        pad_values: What rows of a stream are padded with where their widths differ.
        labels: Classes of the instances, shape ``(N,)``; None: those that the data set or the loss tells.
        chunk_size: Candidates that are scored at once; None: as many as the next batches are likely to need.
    """

    budget: float
    seed: int | None
    flatten: bool
    tokens: TokenBudget | None
    steps_per_epoch: int | None
    pad_values: PadValues
    labels: LabelArray | None = None
    chunk_size: int | None = None

    @classmethod
    def checked(
        cls,
        budget: float,
        seed: int | None,
        flatten: bool,
        max_tokens: int | None,
        lengths: Lengths | None,
        steps_per_epoch: int | None,
        pad_values: PadValues,
        labels: Labels | None = None,
        chunk_size: int | None = None,
    ) -> DataSettings:
        """The settings, for the arguments of the data module.

        Raises:
            ValueError: If one lies outside its range, or ``lengths`` are given without ``max_tokens``.
            TypeError: If one is of the wrong type.
        """
        budget = check_budget(budget)
        seed = None if seed is None else check_whole("seed", seed, "[0, inf)", "None takes that of seed_everything")
        flatten = check_flag("flatten", flatten)
        if steps_per_epoch is not None:
            steps_per_epoch = check_whole("steps_per_epoch", steps_per_epoch, "[1, inf)", "write the K that you want")
        check_lengths(lengths)
        check_pad_values(pad_values)
        if chunk_size is not None:
            chunk_size = check_whole("chunk_size", chunk_size, "[1, inf)", "None scores what the next batches need")
        tokens = token_budget(max_tokens, lengths)
        return cls(budget, seed, flatten, tokens, steps_per_epoch, pad_values, check_labels(labels), chunk_size)

    def for_loggers(self) -> dict[str, Any]:
        """The settings by the names of the data module's arguments; an array of lengths is not among them."""
        return {
            "budget": self.budget,
            "seed": self.seed,
            "flatten": self.flatten,
            "steps_per_epoch": self.steps_per_epoch,
            "pad_values": self.pad_values,
            "labels": None if self.labels is None else "given for each instance",
            "chunk_size": self.chunk_size,
            **({"max_tokens": None, "lengths": None} if self.tokens is None else self.tokens.settings),
        }
