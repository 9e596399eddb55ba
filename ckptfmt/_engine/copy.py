"""Copy committed checkpoints from one store into another (spec §10.8).

    intent → manifests → data → annotations → manifest → data listed again → intent gone

Each checkpoint keeps its number, its id and every byte of its manifest, so also its identity.
Every byte is digested as the source gives it and, unless the caller gives that up, once more
as the target gives it back. What is there already is not moved again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from ckptfmt._engine import catalog, notes
from ckptfmt._engine.catalog import Catalog, Listed, Memory
from ckptfmt._engine.commit import commit
from ckptfmt._engine.fill import Fill, differs
from ckptfmt._engine.leases import Leases
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import ConflictError, FormatError, IntegrityError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.manifest import Manifest, decode_head
from ckptfmt.format.tables import FileRow
from ckptfmt.options import FENCE_SECONDS, Progress, Sources

_log: Final = logging.getLogger("ckptfmt")
_Names: TypeAlias = Mapping[str, list[tuple[int, str, int]]]  # of annotations, by id


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy did, or would do in a dry run."""

    source: str  # URLs without credentials
    target: str
    numbers: tuple[int, ...]  # committed at the target by this call
    present: tuple[int, ...]  # were there already
    deleted: tuple[int, ...]  # were there and have been deleted there: not copied again
    unreadable: tuple[int, ...]  # at the source, so passed over; only when all were asked for
    files: tuple[str, ...]  # data files that were moved
    nbytes: int  # of those files
    annotations: int  # records that were moved


class _Chosen(NamedTuple):
    """One checkpoint of the source, read whole."""

    row: Listed
    manifest: Manifest
    data: bytes  # of its highest valid revision
    first: bytes  # of revision 000; the same unless it was revised


@dataclass(slots=True)
class _Tally:
    numbers: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    annotations: int = 0

    def report(self, source: Backend, target: Backend) -> Copied:
        return Copied(
            source=source.url,
            target=target.url,
            numbers=tuple(self.numbers),
            present=tuple(self.present),
            deleted=tuple(self.deleted),
            unreadable=tuple(self.unreadable),
            files=tuple(self.files),
            nbytes=sum(self.files.values()),
            annotations=self.annotations,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """Copies checkpoints between two stores."""

    source: Backend
    target: Backend
    sources: Sources
    threads: int = 2
    durable: bool = True
    read_back: bool = True  # digest what was written once more, as the target returns it
    progress: Progress | None = None
    cancelled: Callable[[], bool] = lambda: False
    memory: Memory = field(default_factory=Memory)  # of the target

    @property
    def leases(self) -> Leases:
        """The leases of the target."""
        return Leases(backend=self.target, sources=self.sources)

    def copy(self, numbers: Collection[int] | None, *, dry_run: bool = False) -> Copied:
        """Copy checkpoints in ascending order; None is all that can be read.

        After any error the checkpoints before it are committed, the one in work is not
        visible, and calling again goes on with what is missing.

        Raises:
            NotFoundError: no such checkpoint, or it was deleted meanwhile.
            ConflictError: the target has another checkpoint under a number.
            IntegrityError: a chunk of the source is damaged; names path, file and offset.
            FormatError: a manifest that was asked for is damaged, or too new.
            BackendError: storage failed.
        """
        tally = _Tally()
        now = catalog.scan(self.source, Memory())
        wanted = now.numbers if numbers is None else sorted(set(numbers))
        there = catalog.scan(self.target, self.memory)
        data = self.target.list(layout.DATA)
        names = notes.names(self.source), notes.names(self.target)
        for number in wanted:
            chosen = self._chosen(now, number, tally, every=numbers is None)
            if chosen is None:
                continue
            task = _One(self, chosen, tally, names)
            try:
                if dry_run:
                    task.foresee(there, data)
                elif task.is_new(there):
                    task.run()
                elif number not in tally.deleted:
                    task.complete(data)
            except (NotFoundError, IntegrityError) as error:
                self._explain(task, number, error)
                if number not in tally.deleted:
                    raise
            self.memory.manifests.clear()  # they may be large, and there may be thousands
        return tally.report(self.source, self.target)

    def _chosen(
        self, now: Catalog, number: int, tally: _Tally, *, every: bool
    ) -> _Chosen | None:
        """Read a checkpoint of the source; None passes over it."""
        try:
            found = now.readable(number)
            if found is not None:
                data = self.source.read(found[0].key)
                head = decode_head(data, key=found[0].key)
                if found[0].head is not None and head.header == found[0].head.header:
                    first = data
                    if found[0].revision:
                        first = self.source.read(layout.manifest_key(number))
                    return _Chosen(*found, data, first)
        except NotFoundError:
            if not every:
                raise
            return None  # deleted since the listing
        except FormatError as error:
            if not every:
                raise
            _log.warning("checkpoint %d cannot be read and is not copied: %s", number, error)
            tally.unreadable.append(number)
            return None
        if not every:
            raise NotFoundError("no such checkpoint", number=number, url=self.source.url)
        return None

    def _explain(self, task: _One, number: int, error: Exception) -> None:
        """Raise what lies behind missing data: others changed one of the stores meanwhile.

        One that was deleted at the target is counted as such: there is nothing to copy.
        """
        with contextlib.suppress(FormatError):
            row = catalog.scan(self.source, Memory()).listed(number)
            if row is None or row.status == catalog.TOMBSTONE:
                raise NotFoundError(
                    "checkpoint was deleted at the source while it was copied",
                    number=number,
                    url=self.source.url,
                ) from error
            task.is_new(catalog.scan(self.target, Memory()))  # raises if the number is taken


@dataclass(slots=True)
class _Lease:
    save_id: str
    sent: bool = False  # a manifest was sent, and how that ended is not known yet


class _One:
    """One checkpoint on its way."""

    def __init__(
        self, to: Copier, chosen: _Chosen, tally: _Tally, names: tuple[_Names, _Names]
    ) -> None:
        self._to = to
        self._target = to.target
        self._chosen = chosen
        self._tally = tally
        self._number = chosen.row.number
        self._id = chosen.manifest.summary.id or ""
        self._notes = [own.get(self._id, []) for own in names]
        self._files = chosen.manifest.tables.files
        self._behind = False  # the target has a later revision, which needs fewer files
        self._fill = Fill(
            source=to.source,
            target=to.target,
            memory=to.memory,
            number=self._number,
            tables=chosen.manifest.tables,
            threads=to.threads,
            read_back=to.read_back,
            progress=to.progress,
            cancelled=to.cancelled,
            moved=tally.files,
        )

    def is_new(self, there: Catalog) -> bool:
        """Tell whether the target lacks the checkpoint, or this revision of it.

        Raises:
            ConflictError: another checkpoint has its number there.
        """
        here = self._chosen.row
        found = there.listed(self._number)
        if found is None:
            return True
        if found.head is None or found.summary is None or here.summary is None:
            raise self._conflict(found)
        if found.summary.id != here.summary.id:
            raise self._conflict(found)
        if found.head.tombstone:
            self._tally.deleted.append(self._number)
            return False
        if found.revision < here.revision:
            return True
        self._behind = found.revision > here.revision
        same = here.head is not None and found.head.header == here.head.header
        if found.revision == here.revision and not same:
            raise self._conflict(found)
        return False

    def _conflict(self, found: Listed | None) -> ConflictError:
        here = self._chosen.row.head
        head = None if found is None else found.head
        return ConflictError(
            "the target has something else under this number, which is not overwritten: copy"
            " into another store",
            number=self._number,
            source=None if here is None else here.header.identity,
            target=None if head is None else head.header.identity,
            status=None if found is None else found.status,
            url=self._target.url,
        )

    def foresee(self, there: Catalog, data: Mapping[str, Entry]) -> None:
        """Count what would be moved; changes nothing."""
        if self.is_new(there):
            self._tally.numbers.append(self._number)
        elif self._number in self._tally.deleted:
            return
        else:
            self._tally.present.append(self._number)
        self._tally.files.update({f.key: f.nbytes for f in self._missing(data)})

    def _missing(self, data: Mapping[str, Entry]) -> list[FileRow]:
        return [] if self._behind else [f for f in self._files if differs(f, data)]

    def complete(self, data: Mapping[str, Entry]) -> None:
        """Bring a checkpoint that is there what it lacks: annotations, lost data files."""
        self._tally.present.append(self._number)
        if self._missing(data):
            with self._leased(self._chosen.row.revision):
                self._fill.run()
        self._annotate()

    def run(self) -> None:
        """Copy data and annotations, then commit."""
        began = self._to.sources.monotonic()
        number, revision = self._number, self._chosen.row.revision
        first = layout.manifest_key(number)
        now = catalog.scan(self._target, self._to.memory)
        if not self.is_new(now):
            raise ConflictError(
                "another copy brought this checkpoint meanwhile: copy again",
                number=number,
                url=self._target.url,
            )
        fresh = not now.has(number, 0)
        with self._leased(0 if fresh else revision) as lease:
            self._fill.run()
            self._annotate()
            age = self._to.sources.monotonic() - began
            if age > FENCE_SECONDS / 2:
                raise ConflictError(
                    "copy took so long that its number may have been given up: copy again,"
                    " the data is there",
                    number=number,
                    seconds=int(age),
                    expected=FENCE_SECONDS // 2,
                )
            lease.sent = True
            if revision:
                self._commit(layout.manifest_key(number, revision), self._chosen.data, lease)
            if fresh:
                self._commit(first, self._chosen.first, lease)
            self._fill.run()  # a deletion that had begun before may have taken a file meanwhile
        self._tally.numbers.append(number)

    @contextlib.contextmanager
    def _leased(self, revision: int) -> Iterator[_Lease]:
        """Keep collectors away from the files until the manifest references them."""
        token = self._to.sources.save_id()
        lease = _Lease(token)
        self._to.leases.copy(
            token,
            number=self._number,
            revision=revision,
            files=[f.key for f in self._files],
        )
        try:
            yield lease
        except (ConflictError, FormatError, NotFoundError):
            # Calling again would not help. After any other error it does: the lease keeps the
            # files until then, or until the number is taken.
            if not lease.sent:
                self._to.leases.drop(token)
            raise
        self._to.leases.drop(token)

    def _commit(self, key: str, data: bytes, lease: _Lease) -> None:
        try:
            commit(
                self._target,
                key,
                data,
                save_id=self._id,
                lease=lease.save_id,
                durable=self._to.durable,
            )
        except ConflictError as error:
            found = catalog.scan(self._target, Memory()).listed(self._number)
            raise self._conflict(found) from error

    def _annotate(self) -> None:
        if self._notes[0]:
            self._tally.annotations += notes.transfer(
                self._to.source, self._target, *self._notes, durable=self._to.durable
            )
