"""What clients of storage raise → our errors. Their texts may hold secrets: never repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

from ckptfmt.backends._secrets import hide
from ckptfmt.errors import BackendError, CheckpointError, ConflictError, NotFoundError

MISSING: Final = (FileNotFoundError, NotADirectoryError)
EXISTS_STATUS: Final = frozenset({409, 412})
PASSING_STATUS: Final = frozenset({408, 425, 429})  # of 4xx, those that go away by themselves
# Scheme → the extra of this distribution that brings its package.
EXTRAS: Final = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure",
    "az": "azure", "adl": "azure", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip


class Failures:
    """Turns whatever a client raises inside the `with` into an error of ours.

    A context manager and no `except` clause: clients raise types of their own, of which no
    base class but Exception is common, and those may only be known after they are imported.

    Args:
        own: Returns the error of somebody else's code that runs inside (the blocks of a
            write): that one passes unchanged.
        hidden: Credentials: a client's error that repeats one is not shown, only its type.
        where: Goes into the message: url, key, offset.
    """

    def __init__(
        self,
        *,
        reading: bool = False,
        own: Blocks | None = None,
        hidden: frozenset[str] = frozenset(),
        **where: object,
    ) -> None:
        self._where = where
        self._hidden = hidden
        self._reading = reading
        self._own = own

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception):
            return
        if self._own is not None and error is self._own.failed:
            return
        if isinstance(error, CheckpointError):
            hide(error, self._hidden)
            return
        made = self._made(error)
        made.__cause__ = error
        hide(made, self._hidden)
        raise made from made.__cause__

    def _made(self, error: Exception) -> CheckpointError:
        """Return our error for one of a client."""
        if self._reading and isinstance(error, MISSING):
            return NotFoundError("no such object", **self._where)
        if not self._reading and says_exists(error):
            return ConflictError("object exists", **self._where)
        if isinstance(error, ImportError):
            scheme = str(self._where.get("url", "")).partition("://")[0]
            extra = EXTRAS.get(scheme)
            way_out = f": pip install 'ckptfmt[{extra}]'" if extra else ""
            reason = f"the package for {scheme}:// is not installed{way_out}"
            return BackendError(reason, **self._where)
        return BackendError("storage failed", error=type(error).__name__, **self._where)


class OnFailure:
    """Runs a check when a client fails: its error, if it raises one, says it better."""

    def __init__(self, check: Callable[[], object]) -> None:
        self._check = check

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (*MISSING, CheckpointError)):
            self._check()


class Blocks:
    """The blocks of a write, and the error they ended with, which is the caller's own."""

    def __init__(self, blocks: Iterator[memoryview]) -> None:
        self._blocks = blocks
        self.failed: BaseException | None = None

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> memoryview:
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except BaseException as error:
            self.failed = error
            raise


def says_exists(error: BaseException | None) -> bool:
    """Return whether an upload was refused because the key is taken.

    Some clients hide the server's answer behind a general error: the chain of causes tells.
    """
    while error is not None:
        if isinstance(error, FileExistsError) or status(error) in EXISTS_STATUS:
            return True
        error = error.__cause__
    return False


def is_final(error: BaseException | None) -> bool:
    """Return whether trying again is of no use: refused, missing, or a wrong call."""
    while error is not None:
        found = status(error)
        if isinstance(found, int) and 400 <= found < 500 and found not in PASSING_STATUS:
            return True
        if isinstance(error, (*MISSING, PermissionError, TypeError)):
            return True
        error = error.__cause__
    return False


def status(error: BaseException) -> object:
    """Return the HTTP status that a client noted on its error, wherever it noted it."""
    if type(error).__module__ == "aiohttp.http_exceptions":
        return None  # of an answer that broke off: the code is the client's own, always 400
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if response is not None:
            return response
    for name in ("status", "status_code", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int):
            return found
    return None
