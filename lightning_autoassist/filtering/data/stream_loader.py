"""Train loaders without indices: which ones are, how long their epochs are, and their way to the Trainer.

Shapes: N data set, B batch, K batches an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import override

from lightning_autoassist.filtering.data.carried import TrackedBatch
from lightning_autoassist.filtering.data.fetching import Fetching
from lightning_autoassist.filtering.data.loader import FetchedLoader
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, batches_per_epoch
from lightning_autoassist.filtering.sampling.indexed_data import UnfilterableError, length_of
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.sampling.selection import Selector

StreamT = TypeVar("StreamT", bound=CandidateStream)


class StreamSizes(NamedTuple):
    """Sizes of a stream.

    Attributes:
        num_batches: K.
        batch_size: B; None where the first batch will tell.
        num_instances: N; None where nothing tells.
    """

    num_batches: int
    batch_size: int | None
    num_instances: int | None


def is_stream(loader: object) -> bool:
    """Whether a train loader yields batches but no indices: over an IterableDataset, or no DataLoader at all."""
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, IterableDataset)
    # Several loaders in a collection, and Lightning's collection of them, are no stream; nor are data without a loader.
    is_other = isinstance(loader, (str, list, tuple, Mapping, Dataset, Tensor)) or hasattr(loader, "flattened")
    return isinstance(loader, Iterable) and not is_other


def stream_sizes(loader: Any, steps_per_epoch: int | None, budget: float) -> StreamSizes:
    """K, B and N of a stream: ``steps_per_epoch``, or ceil(budget·N / B) where the stream has a length.

    Raises:
        UnfilterableError: If nothing tells K, or the stream can be read once only.

    Example:
        >>> stream_sizes([[1, 2], [3, 4], [5, 6]], None, budget=0.6)
        StreamSizes(num_batches=2, batch_size=None, num_instances=None)
    """
    if isinstance(loader, Iterator):
        raise UnfilterableError(
            f"a {type(loader).__name__} can be read only once; give an object whose __iter__ begins a new pass"
        )
    batch_size = getattr(loader, "batch_size", None)
    batch_size = batch_size if isinstance(batch_size, int) else None
    num_instances = None if batch_size is None else length_of(getattr(loader, "dataset", None))
    if steps_per_epoch is not None:
        return StreamSizes(steps_per_epoch, batch_size, num_instances)
    if batch_size is not None and num_instances:
        drop_last = bool(getattr(loader, "drop_last", False))
        return StreamSizes(batches_per_epoch(num_instances, batch_size, budget, drop_last), batch_size, num_instances)
    num_batches = length_of(loader)
    if not num_batches:
        raise UnfilterableError(
            f"a {type(loader).__name__} has no length, so the number of batches in an epoch is not known; write "
            "AutoAssistDataModule(data, steps_per_epoch=...)"
        )
    num_instances = None if batch_size is None else num_batches * batch_size
    return StreamSizes(batches_per_epoch(num_batches, 1, budget), batch_size, num_instances)


def prepare_stream(selector: Selector | None, world_size: int) -> None:
    """Prepare the selector for a stream, and refuse runs in which streams cannot be filtered.

    Raises:
        UnfilterableError: On several devices.
        MisconfigurationException: If the Assistant that was asked for cannot judge a stream; says what to write.
    """
    if world_size > 1:
        raise UnfilterableError(
            f"streams can be filtered on one device only, and this Trainer has {world_size}; use devices=1"
        )
    if selector is not None:
        selector.begin(None)


def continued_stream(
    loader: Iterable[Any],
    sizes: StreamSizes,
    earlier: object,
    restored: dict[str, Any] | None,
    **options: Any,
) -> RowStream:
    """The stream of ``loader``'s rows, going on where an earlier one, or the one of a checkpoint, was.

    Args:
        loader: What is iterated.
        sizes: See :func:`stream_sizes`.
        earlier: The candidate stream so far, if there was one.
        restored: The state of one, from a checkpoint.
        options: Of a new ``RowStream``.
    """
    if isinstance(earlier, RowStream) and sizes.batch_size in (None, earlier.batch_size):
        earlier.read_from(loader)
        earlier.num_batches = sizes.num_batches
        return earlier
    stream = RowStream(
        loader,
        sizes.num_batches,
        batch_size=sizes.batch_size,
        num_instances=sizes.num_instances,
        **options,
    )
    return restored_or_new(
        stream, earlier, restored, f"a stream in batches of {sizes.batch_size or 'a size of its own'}"
    )


def restored_or_new(stream: StreamT, earlier: object, restored: dict[str, Any] | None, sizes: str) -> StreamT:
    """A new candidate stream with the state of a checkpoint, where that fits; warns where an earlier one is given up.

    Args:
        stream: A new one.
        earlier: The candidate stream so far, if there was one; it does not fit the data.
        restored: The state of one, from a checkpoint.
        sizes: Of the data now, in words.
    """
    if restored is not None and stream.can_continue(restored):
        stream.load_state_dict(restored)
    elif earlier is not None or restored is not None:
        rank_zero_warn(
            f"the train loader has changed, to {sizes}: filtering begins anew with a first pass that keeps everything"
        )
    return stream


class StreamedLoader(FetchedLoader):
    """Batches of kept rows for the Trainer's fetching, the user's plain batches for anyone else.

    Not a DataLoader, and without a ``dataset`` before training begins, so that Lightning leaves it alone.

    Args:
        loader: The user's train loader; stays untouched.
        num_batches: K.
        source: The stream that the Trainer's batches are drawn from; asked for at the start of each of its epochs.
        fetching: The Trainer's side.
    """

    keeps_iterator = True  # the stream runs on across epochs

    def __init__(
        self, loader: Iterable[Any], num_batches: int, source: Callable[[], RowStream], fetching: Fetching
    ) -> None:
        super().__init__(loader, num_batches, self._opened, fetching)
        self._is_open = False
        self._make = source
        self._stream: RowStream | None = None

    @override
    def __getattr__(self, name: str) -> Any:
        if name == "dataset" and not self._is_open:
            raise AttributeError("a stream's data set is known once training has begun")
        return super().__getattr__(name)

    def _opened(self) -> RowStream:
        self._stream = self._make()
        return self._stream

    @override
    def _carried_batches(self) -> Iterator[TrackedBatch]:
        self._is_open = True
        draws = self._fetching.begin(self)
        assert self._stream is not None
        # Not in the generator below: workers must start now, as plain Lightning's do.
        self._stream.start()
        self._fetching.has_begun()
        return (TrackedBatch(cast("Any", draw.rows).batch, draw) for draw in draws)
