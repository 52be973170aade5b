"""What an Assistant for text reads of a batch: its tokens, without padding.

Shapes: B batch, T positions of a sequence, W width of rows.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.features import MAX_FEATURES, FeatureFunction
from lightning_autoassist.filtering.memory.tokens import MAX_TOKENS, NO_TOKEN, NUM_SEQUENCES
from lightning_autoassist.trainer_support.arguments import check_whole
from lightning_autoassist.trainer_support.batch_parts import tensors_in

PadId = int | tuple[int | None, int | None] | None


class BatchTokens:
    """The tokens of a batch's instances, taken on the batch's own device, which is never waited for.

    Sequences are the batch's integer tensors of shape ``(B, T)``, in their order: the first is the source, the second,
    where there is one, the target; further ones are not read. Masks (``bool``, or nothing but 0 and 1, as attention
    masks and segment ids have) are none. Where something else is to be read, say what by ``function``.

    Padding is the run of one id at the end of a row; the same id elsewhere is a token. Where the id is not given, it is
    the one with the longest such run in the batch, if this is of four positions or more; or of two, and half of the
    rows end in it; or of any length, and without it all rows end in one mark. Where texts end in repetitions of their
    own, give the id. Padding at the start of rows is not told from tokens. Negative ids are no tokens anywhere.

    Args:
        function: Gets the batch, returns its sequence, shape ``(B, T)``, or a tuple of two.
        pad_id: Of all sequences, or one of each; None finds it in each batch.
        max_tokens: Positions that are read, of each sequence.

    Raises:
        ValueError: If ``max_tokens`` is below 1, or ``pad_id`` is neither an id nor two.

    Example:
        >>> source, target = torch.tensor([[5, 6, 7], [5, 0, 0]]), torch.tensor([[8, 2], [9, 9]])
        >>> BatchTokens(pad_id=0)((source, target), 2)
        tensor([[10, 12, 14, 17,  5],
                [10, -1, -1, 19, 19]], dtype=torch.int32)
    """

    def __init__(
        self, function: FeatureFunction | None = None, pad_id: PadId = None, max_tokens: int = MAX_FEATURES
    ) -> None:
        self.function = function
        self.pad_ids = pad_ids(pad_id)
        self.max_tokens = check_whole("max_features", max_tokens, "[1, inf)", f"{MAX_FEATURES} is the default")

    def __call__(self, batch: Any, batch_size: int) -> Tensor:
        """Rows of columns, see ``tokens``; shape ``(B, W)``, int32, -1 where no token is.

        Raises:
            ValueError: If the batch has no sequence of B rows, or ``function`` returned something else.
        """
        with torch.no_grad():
            if self.function is None:
                found = [tensor.detach() for tensor in tensors_in(batch) if _is_sequence(tensor, batch_size)]
                if not found:
                    raise ValueError(
                        f"the batch holds no token ids, an integer tensor of shape ({batch_size}, T); pass features= "
                        "to return them"
                    )
                has_tokens = torch.stack([((tensor != 0) & (tensor != 1)).any() for tensor in found])
            else:
                found = self._given(self.function(batch), batch_size)
                has_tokens = torch.ones(len(found), dtype=torch.bool, device=found[0].device)
            # A tensor of one number each, and no Python number: reading it would wait for the device.
            places = (has_tokens.cumsum(0) - 1).where(has_tokens, NUM_SEQUENCES)
            return torch.cat([self._rows(*pair) for pair in zip(found, places, strict=True)], dim=1)

    def _rows(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Columns of a sequence; none where its place is not one of those that are read."""
        tokens = tokens.long()
        first, second = (found_pad_id(tokens) if pad_id is None else pad_id for pad_id in self.pad_ids)
        padding = trailing_run(tokens, torch.where(place == 0, first, second))
        is_token = (tokens >= 0) & ~padding & (place < NUM_SEQUENCES)
        columns = (NUM_SEQUENCES * (tokens % MAX_TOKENS) + place).where(is_token, NO_TOKEN)
        return columns[:, : self.max_tokens].to(torch.int32)

    @staticmethod
    def _given(returned: Any, batch_size: int) -> list[Tensor]:
        found = [returned] if isinstance(returned, Tensor) else list(returned)
        if not 1 <= len(found) <= NUM_SEQUENCES or not all(_is_sequence(tensor, batch_size) for tensor in found):
            got = [f"{one.dtype} {tuple(one.shape)}" if isinstance(one, Tensor) else repr(one) for one in found]
            raise ValueError(
                f"features= must return token ids, one integer tensor of shape ({batch_size}, T) or two; got "
                + ", ".join(got)
            )
        return [tensor.detach() for tensor in found]


def pad_ids(pad_id: PadId) -> tuple[int | None, int | None]:
    """The padding of both sequences.

    Raises:
        ValueError: If ``pad_id`` is neither an id nor two.
    """
    both = tuple(pad_id) if isinstance(pad_id, (tuple, list)) else (pad_id, pad_id)
    if len(both) != NUM_SEQUENCES or not all(one is None or _is_id(one) for one in both):
        raise ValueError(
            f"pad_id must be an id, one of source and target each, or None, got {pad_id!r}; write pad_id=0, or (0, 0)"
        )
    source, target = (None if one is None else int(one) for one in both)
    return source, target


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def found_pad_id(tokens: Tensor) -> Tensor:
    """The id that fills the ends of a batch's shorter rows, by the rule of :class:`BatchTokens`.

    Args:
        tokens: Shape ``(B, T)``, int64.

    Returns:
        A tensor of one number, on the device of ``tokens``; -1 where nothing tells.

    Example:
        >>> found_pad_id(torch.tensor([[5, 0, 7, 2], [5, 2, 0, 0]])).item()
        0
        >>> found_pad_id(torch.tensor([[5, 6, 7, 2], [5, 6, 2, 0]])).item()  # a run of one, after the mark 2
        0
        >>> found_pad_id(torch.tensor([[5, 6, 7, 4], [5, 6, 2, 0]])).item()
        -1
    """
    last = tokens[:, -1]
    runs = trailing_run(tokens, last[:, None]).sum(1)
    longest, row = runs.max(0)
    candidate = last.gather(0, row[None])[0]
    is_long = (longest > 3) | ((longest > 1) & (((last == candidate).float().mean() >= 0.5) | _ends(tokens, candidate)))
    # Runs of one: rows end in the padding, or in the mark that goes before it. Which is which has to be plain.
    low, high = last.min(), last.max()
    low_is, high_is = _ends(tokens, low), _ends(tokens, high)
    nothing = torch.full_like(low, NO_TOKEN)
    short = torch.where(low_is, low, high).where((low_is != high_is) & (longest == 1), nothing)
    return candidate.where(is_long, short)


def _ends(tokens: Tensor, token: Tensor) -> Tensor:
    """Whether some rows end in a token, others do not, and without it all end in one mark; a tensor of one bool."""
    run = trailing_run(tokens, token).sum(1)
    marks = tokens.gather(1, (tokens.shape[1] - 1 - run).clamp(min=0)[:, None])[:, 0]
    is_empty = run == tokens.shape[1]
    lowest = marks.where(~is_empty, torch.iinfo(marks.dtype).max).min()
    highest = marks.where(~is_empty, torch.iinfo(marks.dtype).min).max()
    return (lowest == highest) & (run > 0).any() & (run == 0).any()


def trailing_run(tokens: Tensor, token: Tensor | int) -> Tensor:
    """Whether a position belongs to the run of a token at its row's end, shape ``(B, T)``, bool."""
    return (tokens == token).flip(1).long().cumprod(1).flip(1).bool()


def _is_sequence(tensor: Any, batch_size: int) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.ndim == 2
        and tensor.shape[0] == batch_size
        and tensor.shape[1] > 0
        and not tensor.is_floating_point()
        and not tensor.is_complex()
        and tensor.dtype != torch.bool
    )
