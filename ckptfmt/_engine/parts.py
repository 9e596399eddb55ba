"""What manifests say of the bytes of data files, and the reads that check them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from ckptfmt._engine.source import Place
from ckptfmt.backends.base import Backend
from ckptfmt.errors import IntegrityError, NotFoundError
from ckptfmt.format.digest import Digest
from ckptfmt.format.tables import Tables

RUN_NBYTES: Final = 8 * 2**20  # one read of neighbouring parts


class Part(NamedTuple):
    """A range of a data file and its digest: a chunk, or the header of the file."""

    offset: int  # first byte in the file
    nbytes: int
    digest: bytes  # b"": nobody knows it, the bytes are only moved
    path: str | None  # of the array; None: the header, or unknown bytes


class Run(NamedTuple):
    """One read: neighbouring parts of one file."""

    offset: int
    nbytes: int
    parts: tuple[Part, ...]


def of_files(tables: Tables, places: Sequence[Place] | None = None) -> dict[str, list[Part]]:
    """Return, for each data file, what a manifest says of it: its header and its chunks.

    Args:
        places: Where the files lie; by default in a store. A bundle has no header of its own
            to check: it was verified as the manifest's.
    """
    where = places or [Place(f.key, 8 + f.header_nbytes) for f in tables.files]
    found: dict[str, list[Part]] = {place.key: [] for place in where}
    own = [found[place.key] for place in where]
    start = [place.start for place in where]
    for file, into in zip(tables.files, own, strict=True):
        if file.key:
            into.append(Part(0, 8 + file.header_nbytes, file.header_digest, None))
    size, digests = tables.digest.nbytes, tables.digests
    counts = np.diff(tables.chunk_at)
    rows = np.repeat(np.arange(len(counts)), counts).tolist()
    columns = (tables.file.tolist(), tables.offset.tolist(), tables.nbytes.tolist())
    for c, (row, file, offset, nbytes) in enumerate(zip(rows, *columns, strict=True)):
        digest = digests[c * size : (c + 1) * size]
        own[file].append(Part(start[file] + offset, nbytes, digest, tables.paths[row]))
    return found


def whole(parts: Iterable[Part], nbytes: int) -> list[Part]:
    """Return the parts, and what lies between them as parts without a digest."""
    found: list[Part] = []
    end = 0
    for part in [*sorted(parts, key=lambda p: p.offset), Part(nbytes, 0, b"", None)]:
        while end < part.offset:
            hole = min(part.offset - end, RUN_NBYTES)
            found.append(Part(end, hole, b"", None))
            end += hole
        found.append(part)
        end = max(end, part.offset + part.nbytes)
    return found


def runs(parts: Iterable[Part]) -> Iterator[Run]:
    """Merge adjacent parts into reads, ascending; no byte is read that is in no part."""
    own: list[Part] = []
    begin = end = 0
    for part in sorted(parts, key=lambda p: (p.offset, p.nbytes)):
        stop = part.offset + part.nbytes
        apart = part.offset > end or (part.offset == end and stop - begin > RUN_NBYTES)
        if own and apart:
            yield Run(begin, end - begin, tuple(own))
            own = []
        if not own:
            begin = end = part.offset
        own.append(part)
        end = max(end, stop)
    if own:
        yield Run(begin, end - begin, tuple(own))


def read(backend: Backend, key: str, run: Run) -> memoryview:
    """Return the bytes of a run.

    Raises:
        IntegrityError: the file is missing or too short.
        BackendError: storage failed.
    """
    try:
        return backend.map(key, run.offset, run.nbytes)
    except (NotFoundError, IntegrityError) as error:
        problem = "is missing" if isinstance(error, NotFoundError) else "ends too early"
        raise IntegrityError(
            f"data file {problem}: restore it from a copy of the store, or take another"
            " checkpoint",
            path=next((p.path for p in run.parts if p.path is not None), None),
            file=key,
            offset=run.offset,
            url=backend.url,
        ) from error


def check(backend: Backend, key: str, run: Run, data: memoryview, digest: Digest) -> None:
    """Compare the bytes of a run with the digests of its parts.

    Raises:
        IntegrityError: they differ; names path, file and offset.
    """
    for _, error in differences(backend, key, run, data, digest):
        raise error


def differences(
    backend: Backend, key: str, run: Run, data: memoryview, digest: Digest
) -> Iterator[tuple[Part, IntegrityError]]:
    """Yield the parts of a run whose bytes have another digest, and what to say of them."""
    for part in run.parts:
        at = part.offset - run.offset
        if not part.digest or (found := digest.of(data[at : at + part.nbytes])) == part.digest:
            continue
        header = part.path is None
        yield (
            part,
            IntegrityError(
                "digest mismatch in the header of a data file"
                if header
                else f"digest mismatch after reading {part.nbytes} bytes",
                path=part.path,
                file=key,
                offset=part.offset,
                expected=part.digest.hex(),
                found=found.hex(),
                url=backend.url,
            ),
        )
