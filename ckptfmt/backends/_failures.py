"""What clients of storage raise → our errors. Their texts may hold secrets: never repeated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    "az": "azure", "adl": "azure", "sftp": "sftp", "ssh": "sftp", "http": "http",
    "https": "http",
}  # fmt: skip
PACKAGES: Final = {
    "webdav": "webdav4",
    "dav": "webdav4",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
}
NOT_TAKEN: Final = "its client takes no such URL or option"
# What users most often did when a client fails so, and the way out: names of types anywhere in
# the chain of causes, or an HTTP status.
HINTS: Final[tuple[tuple[frozenset[object], str], ...]] = (
    (
        frozenset({"PermissionError", 403}),
        "it refused: the credentials are wrong, lack a right, or belong to another account",
    ),
    (
        frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError",
                   "ProfileNotFound", "ClientAuthenticationError", "AuthenticationException",
                   "BadAuthenticationType", "PasswordRequiredException", 401}),
        "no credentials that it takes: give them in storage_options, or where its client looks"
        " for them (environment, profile)",
    ),
    (frozenset({507}), "it has no room left"),
    (
        frozenset({"ClientConnectorError", "ClientConnectorDNSError", "EndpointConnectionError",
                   "ConnectError", "ConnectTimeout",
                   "NoValidConnectionsError", "ConnectionRefusedError", "gaierror",
                   "ServiceRequestError"}),
        "nobody answers there: check address and network",
    ),
    (frozenset({301, "PermanentRedirect"}), "the bucket is in another region: name that one"),
    (
        frozenset({"FileNotFoundError", "ResourceNotFoundError"}),
        "bucket, container or folder is not there: make it first",
    ),
    (frozenset({"NotImplementedError", 405, 501}), "it can only be read"),
    (frozenset({"ParamValidationError", "TypeError", "ValueError"}), NOT_TAKEN),
)  # fmt: skip


class Failures:
    """Turns whatever a client raises inside the `with` into an error of ours.

    A context manager and no `except` clause: clients raise types of their own, of which no
    base class but Exception is common, and those may only be known after they are imported.

    Args:
        own: Returns the error of somebody else's code that runs inside (the blocks of a
            write): that one passes unchanged.
        given: Names of the user's options: shown when the client may not take one.
        hidden: Credentials: a client's error that repeats one is not shown, only its type.
        where: Goes into the message: url, key, offset.
    """

    def __init__(
        self,
        *,
        reading: bool = False,
        own: Blocks | None = None,
        hidden: frozenset[str] = frozenset(),
        given: Collection[str] = (),
        **where: object,
    ) -> None:
        self._where = where
        self._given = given
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
            extra, package = EXTRAS.get(scheme), PACKAGES.get(scheme)
            wanted = f"'ckptfmt[{extra}]'" if extra else package
            way_out = f": pip install {wanted}" if wanted else ", see fsspec's documentation"
            reason = f"the package for {scheme}:// is not installed{way_out}"
            return BackendError(reason, **self._where)
        where = {"error": type(error).__name__, **self._where}
        way_out = hint(error)
        if NOT_TAKEN in way_out and self._given:
            where["options"] = sorted(map(str, self._given))
        return BackendError(f"storage failed{way_out}", **where)


def hint(error: BaseException | None) -> str:
    """Return the way out of a client's failure, as far as its types and status tell."""
    signs: set[object] = set()
    while error is not None:
        signs |= {type(error).__name__, status(error)}
        error = error.__cause__
    return next((f": {text}" for known, text in HINTS if known & signs), "")


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


def lacks_bucket(error: BaseException | None) -> bool:
    """Return whether what is missing is all that could hold a store: its name is mistyped."""
    while error is not None:
        code = getattr(error, "error_code", None)  # of Azure
        if type(error).__name__ == "NoSuchBucket" or code == "ContainerNotFound":
            return True
        error = error.__cause__ or error.__context__
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
    if type(error) is OSError and str(error).startswith("Forbidden: "):
        return 403  # gcsfs says it in no other way
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
