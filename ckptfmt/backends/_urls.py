"""What users write to say where: a path, or a URL, whose scheme may be in capitals."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Final

from ckptfmt.errors import UsageError

LOCAL: Final = ("file://", "local://")
SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# What `pathlib.Path` makes of a URL. One letter is a drive of Windows.
ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/|$)")
# Where all that follows the bucket is the name of an object.
BUCKETS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
# Those that name a user or container before the `@`; everywhere else it can be a token.
NAMED_USERS: Final = frozenset({"abfs", "abfss", "az", "sftp", "ssh", "smb", "hdfs"})


def local_path(url: str | os.PathLike[str]) -> str | None:
    """Return the path on local disk that a user names, "" for none at all; None: a URL.

    `~` and `~user` at its beginning are the home of a user, as in a shell: a path in quotes,
    or in a program, comes here without having been through one. The text behind `file://` is
    taken as it stands: it is not percent-decoded.

    Raises:
        UsageError: a relative path behind `file://`; a URL that lost a slash; `~` where nobody
            knows the user's home.
    """
    text = os.fspath(url)
    for local in LOCAL:
        if text[: len(local)].lower() == local:
            path = text[len(local) :]
            if not path.startswith("/"):
                raise UsageError("a file URL needs an absolute path", url=url)
            return path
    if "://" in text:
        return None
    lost = ONE_SLASH.match(text)
    if lost and _is_scheme(lost[1].lower()):  # else a folder of that name would be the bucket
        raise UsageError(
            "a URL has two slashes behind its scheme; pathlib.Path makes them one: give it as"
            " text (or, for a folder of that name, ./ before it)",
            scheme=lost[1],
        )
    path = os.path.expanduser(text)
    if path == "~" or path.startswith("~/"):
        raise UsageError("the home folder is not known: write it out, or set HOME", path=text)
    return path


def _is_scheme(name: str) -> bool:
    from fsspec.registry import known_implementations  # costs time to import

    return name in known_implementations


def checked(url: str) -> str:
    """Return a URL as clients of storage are given it.

    Raises:
        UsageError: it has no scheme, several of them (`simplecache::s3://…`: a cache in front
            of a store would show states that no longer exist), a control character, or a query
            behind a bucket, whose client would take it for a part of a name.
    """
    if "::" in url:  # not shown: it may hold credentials in more than one place
        raise UsageError("chained URLs are not supported", scheme=url.partition("::")[0])
    found = SCHEME.fullmatch(url)
    if found is None:
        raise UsageError("no file system for this URL", scheme=url.partition("://")[0])
    if any(character < " " for character in url):  # the end of a line, mostly
        raise UsageError("a URL has no control characters", url=without_credentials(url))
    scheme = found[1].lower()
    if scheme in BUCKETS and "?" in found[2]:
        raise UsageError(
            "the URL of a bucket has no query: options are given as storage_options",
            url=without_credentials(url),
        )
    return f"{scheme}://{found[2]}"


def without_credentials(url: str) -> str:
    """Return `url` without what may be secret: user and password, query, fragment.

    On a bucket `#` is a sign like any other.
    """
    scheme = url.partition(":")[0].lower()
    parts = urllib.parse.urlsplit(url, allow_fragments=scheme not in BUCKETS)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user or parts.scheme not in NAMED_USERS:
        user = at = ""
    return f"{parts.scheme}://{user}{at}{host}{parts.path}"
