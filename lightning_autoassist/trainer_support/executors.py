"""Where the Assistant learns and batches are drawn: in the training loop itself, or in a thread beside it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue

from typing_extensions import override

# Jobs that may wait for the thread; a step has two, and may ask for some batches at once for its workers.
MAX_WAITING = 64
# Seconds that a closing thread may take for what it has begun; it may wait for another process, which has died.
CLOSING_SECONDS = 30.0
# Of every job that is done at once: a future takes longer to make than many a job.
_DONE: Future[None] = Future()
_DONE.set_result(None)


class InlineExecutor:
    """Does every job at once, in the thread that asks.

    Args:
        draws_ahead: Batches that are drawn before they are asked for, and before what the latest step showed is learnt.

    Example:
        >>> jobs, done = InlineExecutor(), []
        >>> jobs.submit(lambda: done.append(1)).done(), done
        (True, [1])
    """

    def __init__(self, draws_ahead: int = 0) -> None:
        self.draws_ahead = draws_ahead

    def submit(self, job: Callable[[], object]) -> Future[None]:
        """Do a job, after all that were submitted before it.

        Args:
            job: What is to be done. It must not wait for a job that it submits itself.

        Returns:
            A future that is done when the job is, and then holds what the job raised.
        """
        job()
        return _DONE

    def wait_all(self) -> None:
        """Wait until every job is done; raises what one of them raised."""

    def close(self) -> None:
        """End the thread, if there is one."""


class UpdateThread(InlineExecutor):
    """Does jobs one after the other in a thread of its own, in the order in which they were submitted.

    What the jobs do to each other's data depends on that order alone and never on who is faster. So two runs that
    submit the same jobs draw the same instances, as long as nobody reads such data before :meth:`wait_all`, or before
    the job that is waited for.

    Args:
        draws_ahead: See :class:`InlineExecutor`.
        max_waiting: Jobs that may be unfinished; submitting one more waits for the oldest.

    Example:
        >>> import functools
        >>> thread, done = UpdateThread(), []
        >>> for number in range(3):
        ...     _ = thread.submit(functools.partial(done.append, number))
        >>> thread.wait_all()
        >>> thread.close()
        >>> done
        [0, 1, 2]
    """

    def __init__(self, draws_ahead: int = 1, max_waiting: int = MAX_WAITING) -> None:
        super().__init__(draws_ahead)
        self._max_waiting = max_waiting
        self._unfinished: deque[Future[None]] = deque()
        self._queue: SimpleQueue[tuple[Callable[[], object], Future[None]] | None] = SimpleQueue()
        # A daemon, for it may wait for a process that has died.
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="autoassist", daemon=True)
        self._thread.start()

    @override
    def submit(self, job: Callable[[], object]) -> Future[None]:
        # A job's own jobs are part of it; and a closed thread is none.
        if self._thread is None or self._thread is threading.current_thread():
            return super().submit(job)
        while self._unfinished and (self._unfinished[0].done() or len(self._unfinished) >= self._max_waiting):
            self._unfinished.popleft().result()
        done: Future[None] = Future()
        self._unfinished.append(done)
        self._queue.put((job, done))
        return done

    @override
    def wait_all(self) -> None:
        if self._thread is threading.current_thread():
            return
        while self._unfinished:
            self._unfinished.popleft().result()

    @override
    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            wait(self._unfinished, CLOSING_SECONDS)
            self._unfinished.clear()
            self._queue.put(None)
            thread.join(CLOSING_SECONDS)

    def _work(self) -> None:
        while (waiting := self._queue.get()) is not None:
            job, done = waiting
            try:
                job()
            except BaseException as error:  # whatever it is, whoever waits for the job has to hear of it
                done.set_exception(error)
            else:
                done.set_result(None)
            del job, done, waiting  # a job holds a batch's tensors
