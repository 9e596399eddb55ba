"""What training loops share: signals that ask for a last checkpoint, and what saving costs.

Signals are noted when they come, and obeyed at the end of a step.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ckptfmt.errors import UsageError

_log: Final = logging.getLogger("ckptfmt")

EXIT_STATUS: Final = 128  # plus the number of the signal, as shells report it
MAX_COST: Final = 0.05  # of the time; more for saving is worth a warning
MIN_SECONDS: Final = 60.0  # of training before that can be told


class Cost:
    """The part of the time since `begin` that went into saving."""

    def __init__(self) -> None:
        self._warned = False
        self.begin()

    def begin(self) -> None:
        """Start the clock: training begins, or goes on."""
        self._seconds = 0.0
        self._began = self.saved_at = time.monotonic()  # the latter: end of the last save

    @property
    def part(self) -> float:
        """0 to 1."""
        return self._seconds / max(time.monotonic() - self._began, 1e-9)

    def add(self, seconds: float) -> None:
        """Count a save that ended now; warn once when saving takes too much of the time."""
        self.saved_at = time.monotonic()
        self._seconds += seconds
        long = self.saved_at - self._began > MIN_SECONDS
        if long and self.part > MAX_COST and not self._warned:
            self._warned = True
            _log.warning(
                "saving takes %.0f %% of the time: save less often, or with background=True",
                100 * self.part,
            )


class Watch:
    """While entered, notes the signals it was given and passes them on to the old handlers.

    Args:
        signals: Such as `signal.SIGTERM` and `signal.SIGUSR1`.
        deadline_seconds: When a signal was not obeyed by then, the log says so: a step that
            takes longer than the grace of the cluster loses what it did.

    Raises:
        UsageError: when entered: a signal cannot be caught, or not in this thread.
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
            try:
                self._old[number] = signal.signal(number, self._note)
            except (OSError, TypeError, ValueError) as error:  # SIGKILL, "SIGTERM", a thread
                self.__exit__(None, None, None)
                raise UsageError(
                    f"this signal cannot be waited for here: {error}", signal=number
                ) from error
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
