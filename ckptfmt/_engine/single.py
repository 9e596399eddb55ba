"""A whole checkpoint, or only its weights, as one safetensors file (spec §5.6).

The header comes first and holds the manifest, so everything in it must be known before the
first byte is written: chunk digests come from the checkpoint that is packed, or from one pass
over the caller's arrays.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ckptfmt._engine import plan
from ckptfmt.backends.base import Backend, Buffer
from ckptfmt.dtypes import DType
from ckptfmt.errors import FormatError, IntegrityError, UsageError
from ckptfmt.format import codec, datafile, tables
from ckptfmt.format.digest import Digest
from ckptfmt.format.manifest import Manifest
from ckptfmt.format.tables import ArrayRow, Chunk, FileRow, Tables
from ckptfmt.options import Progress

MANIFEST: Final = "ckptfmt"  # key in `__metadata__`
MAX_MANIFEST_NBYTES: Final = 32 * 2**20
BARE_SECTIONS: Final = ("model", "")  # their arrays have natural names without a prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One array to be written: what it is, and its bytes chunk by chunk."""

    path: str
    aliases: Sequence[str]
    dtype: DType
    shape: tuple[int, ...]
    chunks: Sequence[Chunk]  # in order of the boxes; digests are of the raw bytes
    read: Callable[[Chunk], Buffer]


class File(NamedTuple):
    """A file laid out: everything is known but the array bytes."""

    header: bytes
    order: Sequence[Source]
    nbytes: int

    def blocks(self, progress: Progress | None) -> Iterator[Buffer]:
        """Yield the file, reading one chunk at a time."""
        done = len(self.header)
        yield self.header
        for source in self.order:
            for chunk in source.chunks:
                yield source.read(chunk)
                done += chunk.nbytes
                if progress is not None:
                    progress("write", done, self.nbytes)


def bundle(sources: Sequence[Source], manifest: Manifest) -> File:
    """Lay out a bundle: `manifest` tells everything but where the chunks lie.

    Raises:
        UsageError: the manifest is too large for one file; use a store.
    """
    order = _ordered(sources)
    entries = _entries(order, strict=False)
    features = manifest.summary.features
    others = tuple(name for name in features.read if name not in codec.OPTIONAL)  # all are raw
    packed = dataclasses.replace(
        manifest,
        summary=dataclasses.replace(
            manifest.summary, features=dataclasses.replace(features, read=others)
        ),
        tables=_tables(sources, order, manifest.tables.digest, manifest.summary.number),
    ).encode()
    if len(packed) > MAX_MANIFEST_NBYTES:
        raise UsageError(
            "manifest too large for a single file: use a store",
            expected=MAX_MANIFEST_NBYTES,
            found=len(packed),
        )
    text = base64.b64encode(packed).decode("ascii")
    header = datafile.build(entries, {**datafile.STRICT_METADATA, MANIFEST: text})
    return File(header, order, len(header) + sum(e.nbytes for e in entries))


def plain(sources: Sequence[Source]) -> File:
    """Lay out a safetensors file without a manifest.

    Raises:
        UsageError: an array's dtype has no name that every reader of safetensors knows.
    """
    order = _ordered(sources)
    entries = _entries(order, strict=True)
    header = datafile.build(entries)
    return File(header, order, len(header) + sum(e.nbytes for e in entries))


def _ordered(sources: Sequence[Source]) -> list[Source]:
    return sorted(sources, key=lambda s: -s.dtype.itemsize)  # keeps every array aligned


def _entries(order: Sequence[Source], *, strict: bool) -> list[datafile.Entry]:
    names = plan.EntryNames()
    entries = []
    offset = 0
    for source in order:
        nbytes = sum(c.nbytes for c in source.chunks)
        natural = _natural(source.path)
        if not source.dtype.natural and strict:
            raise UsageError(
                "safetensors has no name for this dtype that all its readers know:"
                " convert the array, or pack the checkpoint instead",
                path=source.path,
                dtype=source.dtype.name,
            )
        if source.dtype.natural:
            entry = names.whole(natural), source.dtype.name, source.shape
        else:
            entry = names.part(natural, 0), "U8", (nbytes,)
        name, kind, shape = entry
        entries.append(
            datafile.Entry(name=name, dtype=kind, shape=shape, offset=offset, nbytes=nbytes)
        )
        offset += nbytes
    return entries


def _natural(path: str) -> str:
    section = plan.section_of(path)
    name = plan.natural_name(path, full=False)
    return name if section in BARE_SECTIONS else f"{section}/{name}"


def _tables(
    sources: Sequence[Source], order: Sequence[Source], algorithm: Digest, number: int
) -> Tables:
    placed: dict[str, list[Chunk]] = {}
    offset = 0
    for source in order:
        placed[source.path] = []
        for chunk in source.chunks:
            nbytes = chunk.nbytes
            placed[source.path].append(
                chunk._replace(file=0, offset=offset, codec=codec.RAW, digest=chunk.raw_digest)
            )
            offset += nbytes
    file = FileRow("", offset, 0, bytes(algorithm.nbytes), number)
    return tables.build(
        (
            (ArrayRow(path=s.path, dtype=s.dtype, shape=s.shape), s.aliases, placed[s.path])
            for s in sources
        ),
        files=[file] if offset else [],
        algorithm=algorithm,
    )


class Opened(NamedTuple):
    """A bundle that was opened."""

    data: bytes  # of the manifest file inside
    manifest: Manifest
    start: int  # first byte of the data area


def open_bundle(backend: Backend, key: str, size: int) -> Opened:
    """Read and check the header of a bundle of `size` bytes, and the manifest in it.

    Raises:
        NotFoundError: no such file.
        FormatError: no safetensors file, or one without a manifest.
        IntegrityError: truncated or damaged.
    """
    where: dict[str, Any] = {"file": key, "url": backend.url}
    n = datafile.header_nbytes(backend.read(key, 0, min(8, size)), size, **where)
    header = datafile.parse(backend.read(key, 8, n), size - 8 - n, **where)
    text = header.metadata.get(MANIFEST)
    if text is None:
        raise FormatError(
            "a plain safetensors file, without a checkpoint manifest: read it with the"
            " safetensors library",
            **where,
        )
    if len(text) > -(-MAX_MANIFEST_NBYTES // 3) * 4:
        raise FormatError(
            "the manifest in the file is too large",
            expected=MAX_MANIFEST_NBYTES,
            found=len(text) * 3 // 4,
            **where,
        )
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError as error:
        raise FormatError("the manifest in the file is not base64", **where) from error
    manifest = Manifest.decode(data, bundle=True)
    area = sum(f.nbytes for f in manifest.tables.files)
    if area != size - 8 - n:
        raise IntegrityError(
            "manifest and file disagree about the data area",
            expected=area,
            found=size - 8 - n,
            **where,
        )
    return Opened(data, manifest, 8 + n)
