"""Signals that ask for a last checkpoint: noted when they come, obeyed at the end of a step."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final, Self

_log: Final = logging.getLogger("ckptfmt")

EXIT_STATUS: Final = 128  # plus the number of the signal, as shells report it


class Watch:
    """While entered, notes the signals it was given and passes them on to the old handlers.

    Args:
        signals: Such as `signal.SIGTERM` and `signal.SIGUSR1`.
        deadline_seconds: When a signal was not obeyed by then, the log says so: a step that
            takes longer than the grace of the cluster loses what it did.
    """

    def __init__(self, signals: Iterable[int], deadline_seconds: float) -> None:
        self._signals = tuple(signals)
        self._deadline = deadline_seconds
        self._old: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self.noted: int | None = None  # number of the first signal that came
        self.since: float | None = None  # by time.monotonic()

    def __enter__(self) -> Self:
        for number in self._signals:
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is None:
            self.noted, self.since = number, time.monotonic()
            self._timer = threading.Timer(self._deadline, self._late, [number])
            self._timer.daemon = True
            self._timer.start()
        handler = self._old.get(number)
        if callable(handler):
            handler(number, frame)

    def _late(self, number: int) -> None:
        _log.error(
            "no step ended within %g s of %s: nothing was saved since it came",
            self._deadline,
            signal.Signals(number).name,
        )
