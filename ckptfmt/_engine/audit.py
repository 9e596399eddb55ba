"""Every stored byte of a checkpoint against its digest, each byte once for many checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ckptfmt._engine import parts
from ckptfmt._engine.parts import Part, Run
from ckptfmt._engine.source import Place
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend
from ckptfmt.errors import IntegrityError
from ckptfmt.format.tables import FileRow, Tables
from ckptfmt.options import Progress

_Name = tuple[str, int, int, bytes]  # key, offset, nbytes, digest: what a part is, in any tree


@dataclass(slots=True)
class Seen:
    """What was read of one store: a byte that several checkpoints share is read once."""

    good: set[_Name] = field(default_factory=set)
    bad: dict[_Name, IntegrityError] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  # of data files, from one listing


class Audit(NamedTuple):
    """What was found in one checkpoint."""

    chunks: int
    nbytes: int  # of the chunks, as stored
    read_nbytes: int  # thereof read by this call
    problems: list[IntegrityError]


def audit(
    backend: Backend,
    tables: Tables,
    places: Sequence[Place],
    *,
    seen: Seen,
    threads: int,
    progress: Progress | None,
) -> Audit:
    """Digest all stored bytes that `seen` lacks; finds every problem. Memory stays bounded.

    Raises:
        BackendError: storage failed, which says nothing about the data.
    """
    known = parts.of_files(tables, places)
    problems = _wrong_lengths(backend, tables.files, seen)
    lost = {error.where["file"] for error in problems}
    known = {
        k: [p for p in own if p.path is not None or k not in lost] for k, own in known.items()
    }
    todo = [
        (key, run)
        for key, own in known.items()
        for run in parts.runs(p for p in own if not _is_known(seen, key, p))
    ]
    read = _read(backend, tables, todo, seen, threads, progress)
    chunks = [(key, p) for key, own in known.items() for p in own if p.path is not None]
    for key, own in known.items():
        for part in own:
            found = seen.bad.get(_name(key, part))
            if found is not None:
                where = {**found.where, "path": part.path}
                problems.append(IntegrityError(found.message.partition(" [")[0], **where))
    return Audit(len(chunks), sum(p.nbytes for _, p in chunks), read, problems)


def _read(
    backend: Backend,
    tables: Tables,
    todo: Sequence[tuple[str, Run]],
    seen: Seen,
    threads: int,
    progress: Progress | None,
) -> int:
    """Read what was never read; returns the bytes of chunks among it."""
    total = sum(run.nbytes for _, run in todo)
    done = read = 0
    with Threads(min(threads, max(1, len(todo))), "ckptfmt-verify") as pool:
        results = pool.ordered(
            lambda item: (item, _check(backend, tables, *item)), todo, ahead=4 * threads
        )
        for (key, run), wrong in results:
            for part in run.parts:
                if part in wrong:
                    seen.bad[_name(key, part)] = wrong[part]
                else:
                    seen.good.add(_name(key, part))
                # An error without `found` says that there was nothing to digest.
                came = part not in wrong or "found" in wrong[part].where
                read += part.nbytes if came and part.path is not None else 0
            done += run.nbytes
            if progress is not None:
                progress("verify", done, total)
    return read


def _check(backend: Backend, tables: Tables, key: str, run: Run) -> dict[Part, IntegrityError]:
    """Return what is wrong with the parts of one read."""
    try:
        data = parts.read(backend, key, run)
    except IntegrityError as error:
        if len(run.parts) == 1:
            return {run.parts[0]: error}
        wrong: dict[Part, IntegrityError] = {}  # some of them may lie before the end
        for part in run.parts:
            wrong |= _check(backend, tables, key, Run(part.offset, part.nbytes, (part,)))
        return wrong
    return dict(parts.differences(backend, key, run, data, tables.digest))


def _wrong_lengths(
    backend: Backend, files: Sequence[FileRow], seen: Seen
) -> list[IntegrityError]:
    """Compare the file rows with one listing."""
    problems = []
    for file in files:
        if not file.key:
            continue  # a bundle: one file, whose length its header has told
        if file.key not in seen.lengths:
            listed = backend.list(file.key.rpartition("/")[0])
            seen.lengths.update((e.key, e.nbytes) for e in listed.values())
        if seen.lengths.get(file.key) != file.nbytes:
            problems.append(
                IntegrityError(
                    "data file is missing or has another length",
                    file=file.key,
                    expected=file.nbytes,
                    found=seen.lengths.get(file.key),
                )
            )
    return problems


def _is_known(seen: Seen, key: str, part: Part) -> bool:
    name = _name(key, part)
    return name in seen.good or name in seen.bad


def _name(key: str, part: Part) -> _Name:
    return key, part.offset, part.nbytes, part.digest
