"""Take secrets out of text before it is recorded. Pure: text in, text out.

A secret is recognised by the name in front of it, by its place in a URL, or by the fixed
shape of a well-known kind of token. Where its end is in doubt, the rest of the text goes with
it. What stands under an innocent name and has no shape of its own, such as a password given
to a short flag, cannot be recognised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

MASK: Final = "***"
MAX_TEXT_LENGTH: Final = 2000  # characters; also bounds the work of the patterns below
MAX_ARGUMENTS: Final = 200

# Words of a name that mark a secret (`--db-password`, `userPwd`), words that do so unless a
# mere number follows (`--key_dim 64`, `--max-tokens 2048`), and parts of one run together.
_STRONG: Final = frozenset(
    ("auth", "authorization", "bearer", "cookie", "cookies", "creds", "credential",
     "credentials", "dsn", "passphrase", "passwd", "password", "passwords", "pw", "pwd", "sas",
     "secret", "secrets")
)  # fmt: skip
_WEAK: Final = frozenset(["key", "keys", "pass", "sig", "signature", "token", "tokens"])
_PLURALS: Final = frozenset(["keys", "tokens"])
_PARTS: Final = (
    "accesskey", "accesstoken", "apikey", "authkey", "authtoken", "connectionstring",
    "credential", "encryptionkey", "passphrase", "passwd", "password", "privatekey", "secret",
    "sessiontoken", "signingkey", "webhook",
)  # fmt: skip

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NUMBER: Final = re.compile(r"[\"'\[\s]*[-+]?\d[\d.eE+-]*(?=[\s,;&)}\]\"']|$)")
# `name=value`, `name: value`, `"name": value`, `?name=value`, `--name value` inside a text.
_NAMED: Final = re.compile(
    r"(?<![\w.%-])(?P<name>[\w.%-]+)[\"'\]]*\s*(?::=|[=:])\s*|(?<!\S)--?(?P<flag>\w[\w.-]*)\s+"
)
_BEARER: Final = re.compile(r"\bbearer\s+", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|sk-[\w-]{16,}|xox[a-z]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?|-----BEGIN [A-Z ]*PRIVATE KEY.*)",
    re.DOTALL,
)
_USER: Final = re.compile(r"(?<![\w/])[^\s/:@=]+:[^\s/@][^\s@]*@(?=[\w.-]+[:/])")  # no scheme


def argv(arguments: Sequence[object]) -> list[str]:
    """Return command line arguments without secrets, at most `MAX_ARGUMENTS` of them.

    After a flag with a secret-like name everything up to the next flag goes, since such a
    flag may take several values. The first of them goes even if it looks like a flag: a
    password may begin with a dash.
    """
    plain = [printable(str(argument)) for argument in arguments[:MAX_ARGUMENTS]]
    masked: list[str] = []
    first, rest = False, False  # whether this argument is the first, or a later, secret value
    for argument, following in zip(plain, [*plain, ""][1:], strict=True):
        is_flag = argument.startswith("-")
        secret = is_flag and "=" not in argument and _is_secret(argument, following)
        hidden = not secret and (first or (rest and not is_flag))
        masked.append(MASK if hidden else text(argument))
        first, rest = secret, secret or hidden
    if len(arguments) > MAX_ARGUMENTS:
        masked.append(f"... and {len(arguments) - MAX_ARGUMENTS} more")
    return masked


def text(value: str) -> str:
    """Return one text without secrets; a longer one than `MAX_TEXT_LENGTH` goes altogether."""
    value = printable(value)
    if len(value) > MAX_TEXT_LENGTH:
        return f"{MASK} ({len(value)} characters)"
    for match in _NAMED.finditer(value):
        if _is_secret(match["name"] or match["flag"], value[match.end() :]):
            value = value[: match.end()] + MASK
            break
    bearer = _BEARER.search(value)
    if bearer:
        value = value[: bearer.end()] + MASK
    value = "".join(map(_without_users, re.split(r"(\s+)", value)))
    return _TOKEN.sub(MASK, _USER.sub("", value))


def printable(value: str) -> str:
    """Return `value` with everything escaped that UTF-8 cannot encode, as in `\\udcff`."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_secret(name: str, value: str) -> bool:
    """Tell whether `value`, which follows `name`, is likely to be a secret."""
    words = [word.lower() for word in _WORD.findall(re.sub("%[0-9A-Fa-f]{2}", "_", name))]
    joined = "".join(words)
    if not _STRONG.isdisjoint(words) or joined.endswith("token"):
        return True
    if not _WEAK.isdisjoint(words):
        # The last word says what the value is: `--key 123` is a key, `--key_dim 64` is not.
        return words[-1] in _WEAK - _PLURALS or not _NUMBER.match(value)
    return any(part in joined for part in _PARTS)


def _without_users(word: str) -> str:
    """Strip `user:password@` from the URLs in a word, and no `@` that belongs to a path."""
    start = word.find("://") + 3
    while start > 2:
        url = word[start:]
        authority = re.split(r"[/?#]", url, maxsplit=1)[0]
        user, at_sign, _ = authority.rpartition("@")
        host, colon, port = authority.rpartition(":")
        odd_port = bool(colon) and not port.isdigit()
        if ":" in user or (odd_port and "@" in url):
            # A password may hold an unescaped `/` or `@`: cut after the last one.
            url = url.rpartition("@")[2]
        elif at_sign:
            url = url[len(user) + 1 :]
        elif odd_port and port:
            url = f"{host}:{MASK}"
        word = word[:start] + url
        start = word.find("://", start) + 3
    return word
