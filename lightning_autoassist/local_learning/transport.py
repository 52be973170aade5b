"""What the processes of layer-parallel training send each other.

Two groups of the run's own, and not the default group: where there is one, Lightning and torchmetrics do collectives of
theirs at places that not every process reaches. One group carries activations, from process to process and forward
only; the other one carries what all agree on.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

_HEADER = 24
_MAX_AXES = _HEADER - 5
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# Processes import and load before they meet.
_TIME_TO_START = timedelta(minutes=10)
# Of this process, by where its processes meet: a port can be listened on once.
_GROUPS: dict[tuple[str, int, int, int], Groups] = {}


class PeerEndedError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


class Groups(NamedTuple):
    """The groups of a run's processes.

    Attributes:
        flow: For activations.
        agreement: For what all processes agree on.
        rank: Of this process.
        size: W.
    """

    flow: Any
    agreement: Any
    rank: int
    size: int

    @classmethod
    def connect(cls, address: str, port: int, rank: int, size: int, timeout: float) -> Groups:
        """Meet the other processes; later fits of these processes have the same groups.

        Args:
            address: Of the first process.
            port: On which it listens.
            rank: Of this process.
            size: W.
            timeout: Seconds after which a process that does not answer is given up.
        """
        key = (address, port, rank, size)
        if key not in _GROUPS:
            _GROUPS[key] = cls._connected(address, port, rank, size, timedelta(seconds=timeout))
        return _GROUPS[key]

    @classmethod
    def _connected(cls, address: str, port: int, rank: int, size: int, limit: timedelta) -> Groups:
        # Public, and yet not exported as the type checker wants it.
        of_torch: Any = distributed
        store = of_torch.TCPStore(address, port, size, rank == 0, max(limit, _TIME_TO_START))
        stores = [of_torch.PrefixStore(f"local_learning/{name}", store) for name in ("flow", "agreement")]
        made = [of_torch.ProcessGroupGloo(each, rank, size, limit) for each in stores]
        return cls(made[0], made[1], rank, size)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Give all processes the values that a tensor on the CPU has in one of them."""
        wait_for(self.agreement.broadcast(tensor, source), "that shares what it has learnt")

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """One process's object: tensors on the CPU and builtins, for all of them."""
        packed = pickle.dumps(value) if self.rank == source else b""
        size = torch.tensor([len(packed)])
        self.broadcast(size, source)
        content = torch.frombuffer(bytearray(packed or bytes(int(size))), dtype=torch.uint8)
        self.broadcast(content, source)
        return value if self.rank == source else pickle.loads(content.numpy().tobytes())

    def gather_object(self, value: Any) -> list[Any]:
        """Everybody's object, by rank."""
        return [self.broadcast_object(value, source) for source in range(self.size)]


def wait_for(work: Any, whom: str) -> float:
    """Wait for a transfer; returns the seconds that this took.

    Args:
        work: The transfer.
        whom: With which process, for the message.

    Raises:
        PeerEndedError: If that process has ended, or does not answer in time.
    """
    start = time.perf_counter()
    try:
        work.wait()
    except RuntimeError as error:
        raise PeerEndedError(
            f"The process {whom} has ended, or has not answered for {time.perf_counter() - start:.0f} s. The error of "
            "the process that ended first is the one to look at."
        ) from error
    return time.perf_counter() - start


class Message(NamedTuple):
    """An activation, with what tells whether it belongs to the batch that the receiver has.

    Attributes:
        step: Number of the step.
        checksum: Of the batch.
        values: The activation, on the CPU.
    """

    step: int
    checksum: int
    values: Tensor


class Outbox:
    """Sends activations to the next process, without waiting for it to take them.

    Args:
        group: Carries them.
        peer: Rank of the next process.
        max_in_flight: Activations that may be on their way; the next one waits for the oldest.

    Attributes:
        seconds: That were spent waiting.
    """

    def __init__(self, group: Any, peer: int, max_in_flight: int) -> None:
        self._group, self._peer, self._max = group, peer, max_in_flight
        self._sent: deque[list[tuple[Any, Tensor]]] = deque()
        self._capacity = self._num_sent = 0
        self.seconds = 0.0

    def send(self, message: Message) -> None:
        """Begin to send a message, whose values must stay as they are."""
        values = message.values.contiguous()
        content = values.reshape(-1).view(torch.uint8)
        header = torch.zeros(_HEADER, dtype=torch.int64)
        header[:5] = torch.tensor(
            [message.step, message.checksum, _DTYPES.index(values.dtype), values.ndim, content.numel()]
        )
        header[5 : 5 + values.ndim] = torch.tensor(values.shape)
        parts = [header]
        if self._capacity:
            first = content[: self._capacity]
            missing = self._capacity - first.numel()
            parts.append(torch.cat([first, first.new_zeros(missing)]) if missing else first)
        if content.numel() > self._capacity:
            parts.append(content[self._capacity :])
        tags = [
            _tag(self._num_sent, 0),
            *([_tag(self._num_sent, 1)] if self._capacity else []),
            _tag(self._num_sent, 2),
        ]
        self._num_sent += 1
        self._capacity = max(self._capacity, content.numel())
        works = [self._group.send([part], self._peer, tag) for part, tag in zip(parts, tags, strict=False)]
        self._sent.append(list(zip(works, parts, strict=True)))
        while len(self._sent) > self._max:
            self._wait()

    def finish(self) -> None:
        """Wait until everything has been taken."""
        while self._sent:
            self._wait()

    def _wait(self) -> None:
        for work, _ in self._sent.popleft():
            self.seconds += wait_for(work, "of the next blocks")


class Inbox:
    """Receives activations from the process before, the next one while the last one is being used.

    Args:
        group: Carries them.
        peer: Rank of the process before.

    Attributes:
        seconds: That were spent waiting.
    """

    def __init__(self, group: Any, peer: int) -> None:
        self._group, self._peer = group, peer
        self._capacity = self._num_received = 0
        self._expected: list[tuple[Any, Tensor]] = []
        self.seconds = 0.0

    def receive(self, *, is_last: bool = False) -> Message:
        """The next message; no other is expected after the last one."""
        expected = self._expected or self._expect()
        for work, _ in expected:
            self.seconds += wait_for(work, "of the blocks before")
        header = expected[0][1].tolist()
        step, checksum, dtype, num_axes, num_bytes = header[:5]
        parts = [expected[1][1][:num_bytes]] if self._capacity else []
        if num_bytes > self._capacity:
            work, rest = self._posted(num_bytes - self._capacity, torch.uint8, 2)
            self.seconds += wait_for(work, "of the blocks before")
            parts.append(rest)
        self._capacity = max(self._capacity, num_bytes)
        self._num_received += 1
        self._expected = [] if is_last else self._expect()
        content = parts[0] if len(parts) == 1 else torch.cat(parts)
        values = content.view(_DTYPES[dtype]).reshape(header[5 : 5 + num_axes])
        return Message(step, checksum, values)

    def finish(self) -> None:
        """Take the message that says that there are no more, so that nothing is expected any longer."""
        self.receive(is_last=True)

    def _expect(self) -> list[tuple[Any, Tensor]]:
        content = [self._posted(self._capacity, torch.uint8, 1)] if self._capacity else []
        return [self._posted(_HEADER, torch.int64, 0), *content]

    def _posted(self, size: int, dtype: torch.dtype, part: int) -> tuple[Any, Tensor]:
        tensor = torch.empty(size, dtype=dtype)
        return self._group.recv([tensor], self._peer, _tag(self._num_received, part)), tensor


def _tag(message: int, part: int) -> int:
    """One that no other part of a message has that may be on its way: gloo keeps no order among parts of one tag."""
    return 4 * (message % 4096) + part


def check_can_be_sent(values: Tensor, name: str) -> None:
    """Refuse activations that no message can hold.

    Raises:
        TypeError: If they are of a type that is not sent.
    """
    if values.dtype not in _DTYPES or values.ndim > _MAX_AXES:
        known = ", ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"The output of {name!r} is of {values.dtype}; layers in parallel send {known}.")


def flat_groups(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Tensors by their type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups
