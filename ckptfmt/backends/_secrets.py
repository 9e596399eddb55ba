"""Credentials a user gave for storage, and the errors of clients that repeat them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Final

MIN_LENGTH: Final = 4  # shorter ones stand in every text
# Parts of the names of options that hold a secret, in the clients that fsspec drives.
NAMES: Final = (
    "auth", "connection_string", "credential", "key", "pass", "sas", "secret", "token",
)  # fmt: skip


class HiddenError(OSError):
    """Stands for an error of a client whose text holds credentials."""


def secrets(url: str, options: Mapping[str, object]) -> frozenset[str]:
    """Return what in an address and its options must not be repeated."""
    parts = urllib.parse.urlsplit(url)
    found = {parts.query, *_pieces(parts.query), *_strings(options, secret=False)}
    user, at, _ = parts.netloc.rpartition("@")
    if at:
        password = user.partition(":")[2] or user
        found |= {password, urllib.parse.unquote(password)}
    return frozenset(text for text in found if len(text) >= MIN_LENGTH)


def hide(error: BaseException, known: frozenset[str]) -> None:
    """Replace the causes of `error` by a stand-in if one of them repeats a secret.

    The stand-in keeps the type's name and the `errno`.
    """
    cause = error.__cause__ or error.__context__
    if cause is not None and any(leaks(link, known) for link in _chain(cause)):
        error.__cause__ = stand_in(cause)
        error.__context__ = None


def stand_in(error: BaseException) -> HiddenError:
    """Return what may be shown in the place of an error."""
    text = f"{type(error).__name__}, whose text holds credentials and is not shown"
    number = getattr(error, "errno", None)
    return HiddenError(number, text) if isinstance(number, int) else HiddenError(text)


def leaks(error: BaseException, known: frozenset[str]) -> bool:
    """Tell whether the text of an error repeats a secret, as it is or percent-encoded."""
    text = f"{error} {error!r}"
    return any(s in text or urllib.parse.quote(s, safe="") in text for s in known)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += [link.__cause__, link.__context__]


def _strings(value: object, *, secret: bool) -> Iterator[str]:
    """Yield the texts below options with telling names."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            telling = any(part in str(name).lower() for part in NAMES)
            yield from _strings(below, secret=secret or telling)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _strings(below, secret=secret)
    elif isinstance(value, str) and secret:
        yield value
        yield from _pieces(value)


def _pieces(text: str) -> Iterator[str]:
    """Yield the values inside a query, such as the signature of a SAS token."""
    for _, value in urllib.parse.parse_qsl(text.lstrip("?")):
        if len(value) >= 2 * MIN_LENGTH:
            yield value
