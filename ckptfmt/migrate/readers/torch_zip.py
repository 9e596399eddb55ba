"""PyTorch's zip archives, since 1.6: `<root>/data.pkl` and one stored member a storage."""

from __future__ import annotations

import functools
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import archives
from ckptfmt.migrate.archives import Zip
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.pickles import Machine
from ckptfmt.migrate.source import Contents, named
from ckptfmt.migrate.tensors import Tensors

PICKLE: Final = "data.pkl"
MAX_PICKLE_NBYTES: Final = 2 * 2**30


def read(place: Place) -> Contents | None:
    """Return what one archive holds, or None."""
    span = place.span()
    if span is None or span.head(4) != archives.ZIP_MAGIC:
        return None
    archive = Zip(span)
    root = root_of(archive)
    if root is None or f"{root}/constants.pkl" in archive.names():
        return None
    tree, _ = unpickle(archive, f"{root}/{PICKLE}", f"{root}/data", root)
    lightning = isinstance(tree, dict) and "pytorch-lightning_version" in tree
    version = named(tree["pytorch-lightning_version"])[:40] if lightning else ""
    return Contents(
        format="lightning" if lightning else "torch-zip",
        root=tree,
        files=(span.name,),
        producer=f"PyTorch Lightning {version}" if lightning else "PyTorch 1.6 or newer",
    )


def root_of(archive: Zip) -> str | None:
    """Return the folder of an archive that holds its pickle; any name will do.

    Raises:
        FormatError: there are two.
    """
    found = [n.removesuffix(f"/{PICKLE}") for n in archive.names() if n.endswith(f"/{PICKLE}")]
    found = [root for root in found if "/" not in root]
    if len(found) > 1:
        raise FormatError("two pickles in one archive", file=archive.name, found=found)
    return found[0] if found else None


def unpickle(archive: Zip, member: str, data: str, root: str) -> tuple[Any, set[str]]:
    """Return a member's tree, with tensors over the storages in folder `data`.

    Raises:
        FormatError: malformed, or a storage is missing, compressed or of another length.
    """
    if not archive.is_stored(member):
        raise FormatError("a compressed pickle", file=archive.name, member=member)
    pickle = archive.span(member, limit=MAX_PICKLE_NBYTES)
    tensors = Tensors(archive.name, big_endian=_is_big_endian(archive, root))
    machine = Machine(
        pickle.data, table=tensors.table(), persistent=tensors.persistent, file=pickle.name
    )
    tree = machine.load()
    if machine.at != pickle.nbytes:
        raise FormatError("bytes behind the pickle", file=pickle.name, offset=machine.at)
    for storage in tensors.storages.values():
        name = f"{data}/{storage.key}"
        if not archive.is_stored(name):
            raise FormatError("a compressed storage", file=archive.name, member=name)
        if archive.nbytes(name) != storage.nbytes:
            raise FormatError(
                "a storage is longer or shorter than the pickle says",
                file=archive.name,
                member=name,
                expected=storage.nbytes,
                found=archive.nbytes(name),
            )
        storage.load = functools.partial(_checked, archive, name)
    tensors.check()
    return tree, machine.names


def _checked(archive: Zip, name: str) -> memoryview:
    return archive.span(name).data


def _is_big_endian(archive: Zip, root: str) -> bool:
    name = f"{root}/byteorder"
    if name not in archive.names():
        return False
    order = bytes(archive.span(name, limit=16).data)
    if order not in (b"little", b"big"):
        raise FormatError("unknown byte order", file=archive.name, found=order)
    return order == b"big"
