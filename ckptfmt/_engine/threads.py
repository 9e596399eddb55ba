"""A few threads for one operation, closed on every exit.

Not `concurrent.futures.ThreadPoolExecutor`: it refuses work once the interpreter has begun to
exit, which is just when a pending save must be allowed to finish.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Threads:
    """Runs tasks in `count` threads; a context manager that joins them all."""

    def __init__(self, count: int, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, task = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

    def submit(self, task: Callable[[], U]) -> Future[U]:
        """Run `task` in one of the threads."""
        future: Future[U] = Future()
        self._work.put((future, task))
        return future

    def ordered(self, task: Callable[[T], U], work: Iterable[T], *, ahead: int) -> Iterator[U]:
        """Run `task` over `work`, yield results in order, at most `ahead` beyond the current.

        Unlike `map` of an executor it does not run through all the work at once: the bytes
        that wait for their turn stay bounded.
        """
        waiting: deque[Future[U]] = deque()
        try:
            for item in work:
                waiting.append(self.submit(lambda item=item: task(item)))  # type: ignore[misc]
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def side_by_side(tasks: Sequence[Callable[[], T]], requests: int) -> list[T]:
    """Return what the tasks return, run at most `requests` at once; 1 is one after the other.

    For requests to storage that only wait.

    Raises:
        Exception: of the first task, in order, that failed.
    """
    if requests == 1 or len(tasks) < 2:
        return [task() for task in tasks]
    with Threads(min(requests, len(tasks)), "ckptfmt-ask") as pool:
        asked = [pool.submit(task) for task in tasks]
    return [future.result() for future in asked]
