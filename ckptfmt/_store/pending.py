"""A save that goes on in the background."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt.errors import CancelledError, UsageError

_log: Final = logging.getLogger("ckptfmt")


class PendingSave:
    """A save whose private copy is made and whose bytes are still being written.

    Returned by `Store.save_async`. Its failure cannot get lost: it is raised by `wait`, else by
    the next call on the store, else by closing it, else printed when the interpreter exits,
    which then has a non-zero status. The interpreter waits for it when it exits normally.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], bool]], Checkpoint | None],
        *,
        lost: str = "the last checkpoint was NOT saved",
    ) -> None:
        self._run = run
        self._lost = lost  # what a failure at the interpreter's exit means
        self._cancel = threading.Event()
        self._finished = threading.Event()
        self._result: Checkpoint | None = None
        self._error: BaseException | None = None
        self._seen = False
        self._pid = os.getpid()
        # Not a daemon: the interpreter joins it before it takes anything down.
        self._thread = threading.Thread(target=self._work, name="ckptfmt-async", daemon=False)

    def start(self) -> None:
        """Begin; called once, by the store."""
        atexit.register(self._at_exit)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._result = self._run(self._cancel.is_set)
        except BaseException as error:
            self._error = error
        finally:
            self._finished.set()

    def done(self) -> bool:
        """Tell whether it has finished, well or not; never raises, never blocks."""
        return self._finished.is_set()

    def wait(self, timeout_seconds: float | None = None) -> Checkpoint:
        """Wait until the checkpoint is committed and return it.

        Raises:
            TimeoutError: it takes longer; it goes on nevertheless.
            UsageError: called in a process forked after the save began.
            Exception: the original failure of the save, the same object each time.
        """
        self._check_process()
        if not self._finished.wait(timeout_seconds):
            raise TimeoutError(f"the save is still running after {timeout_seconds} seconds")
        self._settle()
        if self._error is not None:
            self._seen = True
            raise self._error
        if self._result is None:
            raise UsageError("the save was never started")
        return self._result

    def cancel(self) -> bool:
        """Stop the save if its commit has not begun, and wait until it has stopped.

        Returns:
            True when nothing was committed and nothing stays; False when the save had
            finished, well or not: `wait` then tells how.
        """
        self._check_process()
        self._cancel.set()
        self._finished.wait()
        self._settle()
        if isinstance(self._error, CancelledError):
            self._seen = True
            return True
        return False

    def settle(self) -> None:
        """Wait until it has finished; raise its failure unless somebody has seen it."""
        if self.belongs_here():
            self._finished.wait()
            self._settle()
            self.raise_unseen()

    def raise_unseen(self) -> None:
        """Raise the failure of a finished save that nobody has seen yet."""
        if self._error is not None and self.failed_unseen():
            self._settle()
            self._seen = True
            raise self._error

    def failed_unseen(self) -> bool:
        """Tell whether it has failed and nobody knows."""
        return self._finished.is_set() and self._error is not None and not self._seen

    def belongs_here(self) -> bool:
        """False in a child process forked after the save began."""
        return self._pid == os.getpid()

    def _settle(self) -> None:
        """Release the thread: no trace of a finished save stays."""
        self._thread.join()
        atexit.unregister(self._at_exit)

    def _check_process(self) -> None:
        if not self.belongs_here():
            raise UsageError(
                "this save belongs to the parent process: only there can it be waited for",
                parent=self._pid,
                here=os.getpid(),
            )

    def _at_exit(self) -> None:
        if not self.belongs_here():
            return
        self._finished.wait()
        if self._error is None or self._seen:
            return
        _log.error("%s", self._lost, exc_info=self._error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # The only way to change the exit status from here. Hooks registered before the save
        # began are skipped, which is better than a lost run that looks like a success.
        os._exit(1)
