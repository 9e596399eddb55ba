"""Archives of several files: zip (Stable-Baselines, and others), tar, tar.gz.

Each member is read by whichever reader knows its bytes. Members are never extracted, so names
such as `../x` lead nowhere; links and devices are refused all the same.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable
from typing import Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import archives, registry, scratch
from ckptfmt.migrate.archives import View, Zip
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.members import Members
from ckptfmt.migrate.readers import folder
from ckptfmt.migrate.source import Contents

# Kind of archive → members that tell it.
_KINDS: Final = {
    "sb3-zip": frozenset({"data", "policy.pth"}),
    "keras-v3": frozenset({"metadata.json", "config.json", "model.weights.h5"}),
}


def read(place: Place) -> Contents | None:
    """Return what the members of an archive hold, or None when none is a checkpoint."""
    span = place.span()
    if span is None:
        return None
    kind = "tar"
    if (machine := scratch.unpacker(span.head(16))) is not None:
        unpacked = Span(span.name, scratch.unpacked(span.data, machine, span.name))
        if not is_tar(unpacked):
            return _packed(unpacked)
        members, kind = tar_members(unpacked), "tar.gz"
    elif span.head(4) == archives.ZIP_MAGIC:
        archive = Zip(span)
        unpacked_once = functools.cache(archive.mapped)  # many readers look at one
        members = {
            name: functools.partial(unpacked_once, name)
            for name in map(_plain, archive.names())
        }
        kind = next((k for k, names in _KINDS.items() if names <= members.keys()), "zip")
    elif is_tar(span):
        members = tar_members(span)
    else:
        return None
    inner = folder.read(Place(Members(members, span.name), None))
    if inner is None:
        return None
    return Contents(
        format=kind,
        root=inner.root,
        files=(span.name,),
        producer=_producer(kind, inner),
        notes=inner.notes,
        roles=inner.roles,
    )


def _producer(kind: str, inner: Contents) -> str | None:
    if kind == "sb3-zip":
        return "Stable-Baselines3"
    described = inner.root.get("metadata.json") if kind == "keras-v3" else None
    version = described.get("keras_version") if isinstance(described, dict) else None
    return f"Keras {version[:40]}" if isinstance(version, str) else inner.producer


def _packed(span: Span) -> Contents | None:
    """Return what one packed file holds, as joblib packs its pickles."""
    inner = Place(Members({span.name: lambda: span}, span.name), span.name)
    return registry.find(inner, without=frozenset({"archive", "shards", "folder"}))


def _plain(name: str) -> str:
    """Return a member's name if it is a harmless one."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name:
        raise FormatError("a member's name leads out of the archive", member=name)
    return name


def is_tar(span: Span) -> bool:
    """Tell whether a file begins with the header of a tar archive: its checksum fits."""
    head = span.head(512)
    if len(head) < 512:
        return False
    digits = head[148:156].strip(b" \0")
    if not digits or not all(48 <= digit < 56 for digit in digits):
        return False
    return sum(head[:148]) + 8 * 32 + sum(head[156:]) == int(digits, 8)


def tar_members(span: Span) -> dict[str, Callable[[], Span]]:
    """Return the regular files of a tar archive.

    Raises:
        FormatError: malformed; or it has links, devices, or names that lead elsewhere.
    """
    found: dict[str, Callable[[], Span]] = {}
    try:
        with tarfile.open(fileobj=View(span.data), mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise FormatError("a link or device", file=span.name, member=member.name)
                name = _plain(member.name)
                if name in found:
                    raise FormatError("two members have the same name", member=name)
                data = span.cut(member.offset_data, member.size, name)
                found[name] = functools.partial(Span, name, data)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError("malformed tar archive", file=span.name) from error
    return found
