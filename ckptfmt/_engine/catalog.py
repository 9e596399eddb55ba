"""Which checkpoints a store holds: one listing, manifests read on demand (spec §8.1).

A number lives if its revision 000 exists and is not a tombstone; readers then take the highest
valid revision, and only that one counts as a reference. A name whose content does not verify or
needs a newer release is occupied, not loadable: never replaced, never silently passed over.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from dataclasses import dataclass, field
from typing import Final

from ckptfmt._engine.threads import side_by_side
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import FormatError, IntegrityError, NotFoundError, UnsupportedError
from ckptfmt.format import layout
from ckptfmt.format.frame import HEADER_NBYTES, MAX_MANIFEST_NBYTES
from ckptfmt.format.manifest import Head, Manifest, decode_head
from ckptfmt.format.summary import TARGET_NBYTES, Summary
from ckptfmt.pause import gc_paused, gc_seldom

MEMORY_NBYTES: Final = 4 << 20  # of manifests as stored; decoded they are about ten times that
FIRST_READ_NBYTES: Final = HEADER_NBYTES + TARGET_NBYTES  # header and summary in one request

_log: Final = logging.getLogger("ckptfmt")

OK: Final = "ok"
DAMAGED: Final = "damaged"
NEWER: Final = "newer"
TOMBSTONE: Final = "tombstone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One number of a store, as a listing shows it."""

    number: int
    revision: int  # the one readers take
    key: str  # of its manifest
    status: str  # OK, DAMAGED, NEWER or TOMBSTONE
    reason: str | None  # why it cannot be loaded
    head: Head | None  # None unless OK or TOMBSTONE

    @property
    def summary(self) -> Summary | None:
        """The summary, when the manifest is readable."""
        return None if self.head is None else self.head.summary


@dataclass(slots=True)
class Memory:
    """What was read of manifests, kept between listings of one store.

    Manifests never change, except that a tombstone replaces revision 000: an entry counts only
    while length and time of modification are those it was read with.
    """

    heads: dict[str, tuple[Entry, Head | FormatError]] = field(default_factory=dict)
    manifests: dict[str, tuple[Entry, Manifest]] = field(default_factory=dict)

    def add(self, entry: Entry, manifest: Manifest) -> None:
        """Keep a manifest, and forget the ones kept longest where all together grow large.

        Each holds the history of the run: kept without end, they would grow with its square.
        """
        self.manifests[entry.key] = entry, manifest
        kept = [own for own, _ in list(self.manifests.values())]
        total = sum(own.nbytes for own in kept)
        for own in kept[:-1]:
            if total <= MEMORY_NBYTES:
                break
            self.manifests.pop(own.key, None)  # another thread may have been quicker
            total -= own.nbytes


class Catalog:
    """One listing of a store's manifests."""

    def __init__(self, backend: Backend, memory: Memory, entries: dict[str, Entry]) -> None:
        self.url = backend.url
        self._backend = backend
        self._memory = memory
        self._entries: dict[int, dict[int, Entry]] = {}
        for key, entry in entries.items():
            name = layout.parse_manifest_key(key)
            if name is not None:
                self._entries.setdefault(name[0], {})[name[1]] = entry
        # Several threads may look at once: one may find what another has just removed.
        for gone in [key for key in list(memory.heads) if key not in entries]:
            memory.heads.pop(gone, None)
        # A tombstone takes the name of what it replaces, and manifests grow with the run.
        for key, (entry, _) in list(memory.manifests.items()):
            if entries.get(key) != entry:
                memory.manifests.pop(key, None)
        self._listed: dict[int, Listed | None] = {}
        # The first bytes that were read last: mostly the whole manifest of who asks for it.
        self._last: tuple[str, Head | None, bytes] = "", None, b""

    @property
    def numbers(self) -> list[int]:
        """Every number of which any manifest is present, ascending."""
        return sorted(self._entries)

    @property
    def top(self) -> int:
        """The highest number present in any form; 0 in an empty store."""
        return max(self._entries, default=0)

    def has(self, number: int, revision: int) -> bool:
        """Tell whether the name is taken, by whatever."""
        return revision in self._entries.get(number, {})

    def lives(self, number: int) -> bool:
        """Tell whether revision 000 is there and no tombstone, damaged or not (spec §8.1.1)."""
        return self.has(number, 0) and not self._deleted(number)

    def of(self, number: int, revision: int) -> Manifest:
        """Read and check the manifest of any revision, the one in force or not.

        Raises:
            FormatError: and its kinds, when it is not loadable.
            NotFoundError: it is a tombstone, or was deleted since the listing.
        """
        head = self.head(number, revision)
        return self.manifest(self._row(number, revision, OK, None, head))

    def revisions(self, number: int) -> list[int]:
        """Every revision of a number whose name is taken, by whatever; ascending."""
        return sorted(self._entries.get(number, ()))

    def shows(self, row: Listed) -> bool:
        """Tell whether readers still take what `row` of an earlier listing says."""
        again = self.listed(row.number)
        return (
            again is not None
            and again.status == OK
            and again.revision == row.revision
            and again.head == row.head
        )

    def names(self) -> list[tuple[int, int]]:
        """Every manifest name: (number, revision)."""
        return [(n, r) for n, revisions in self._entries.items() for r in revisions]

    def entry(self, number: int, revision: int) -> Entry:
        """Return the listed object of a manifest name."""
        return self._entries[number][revision]

    def head(self, number: int, revision: int, *, at_most: int = FIRST_READ_NBYTES) -> Head:
        """Return header and summary of a manifest.

        Args:
            at_most: Bytes of its beginning to fetch in the one request.

        Raises:
            FormatError: and its kinds, when it is not loadable.
            NotFoundError: it was deleted since the listing.
        """
        entry = self._entries[number][revision]
        known = self._memory.heads.get(entry.key)
        if known is None or known[0] != entry:
            try:
                head, data = self._begin(entry, at_most)
            except FormatError as error:
                self._check_unreplaced(entry, error)
                known = entry, error.with_traceback(None)
            else:
                known = entry, head
                self._last = entry.key, head, data
            self._memory.heads[entry.key] = known
        if isinstance(known[1], FormatError):
            raise known[1]
        return known[1]

    def _check_unreplaced(self, entry: Entry, error: FormatError) -> None:
        """Look again: a tombstone may have taken the place of what was listed."""
        if self._backend.list(layout.MANIFESTS).get(entry.key) != entry:
            raise NotFoundError("deleted since the listing", key=entry.key) from error

    def _begin(self, entry: Entry, at_most: int) -> tuple[Head, bytes]:
        """Read the first bytes of a manifest, its summary included; check what they hold."""
        if entry.nbytes > MAX_MANIFEST_NBYTES:
            raise FormatError(
                "manifest is too large",
                key=entry.key,
                expected=MAX_MANIFEST_NBYTES,
                found=entry.nbytes,
            )
        nbytes = min(entry.nbytes, at_most)
        data = self._backend.read(entry.key, 0, nbytes)
        need = _summary_end(data)
        if nbytes < need <= entry.nbytes:
            data += self._backend.read(entry.key, nbytes, need - nbytes)
        head = decode_head(data, key=entry.key)
        named = layout.manifest_key(head.summary.number, head.summary.revision)
        if named != entry.key:
            raise IntegrityError(
                "manifest lies under another name", key=entry.key, expected=named
            )
        if head.header.nbytes != entry.nbytes:
            raise IntegrityError(
                "manifest has another length than its header says",
                key=entry.key,
                expected=head.header.nbytes,
                found=entry.nbytes,
            )
        return head, data

    def listed(self, number: int) -> Listed | None:
        """Return what a listing says of a number; None when it has no revision 000."""
        if number not in self._listed:
            self._listed[number] = self._look(number, layout.MAX_REVISION)
        return self._listed[number]

    def _look(self, number: int, highest: int) -> Listed | None:
        revisions = self._entries.get(number, {})
        if 0 not in revisions:
            return None
        problem: tuple[int, FormatError] | None = None
        for revision in sorted((r for r in revisions if r <= highest), reverse=True):
            try:
                head = self.head(number, revision)
            except NotFoundError:
                continue  # deleted since the listing
            except UnsupportedError as failed:
                problem = revision, failed
                break  # a newer release wrote this revision: an older one would be stale
            except FormatError as failed:
                problem = problem or (revision, failed)
                continue
            if revision and self._deleted(number):
                return self._row(number, 0, TOMBSTONE, None, self.head(number, 0))
            if revision and head.tombstone:
                continue  # blocks only its own name (a broken lease)
            return self._row(number, revision, TOMBSTONE if head.tombstone else OK, None, head)
        if problem is None:
            return None
        status = NEWER if isinstance(problem[1], UnsupportedError) else DAMAGED
        return self._row(number, problem[0], status, str(problem[1]), None)

    def readable(self, number: int) -> tuple[Listed, Manifest] | None:
        """Return the highest revision whose whole manifest verifies; None when deleted.

        Raises:
            FormatError: and its kinds: there is none.
        """
        self.fetch(number)
        row = self.listed(number)
        while row is not None and row.status != TOMBSTONE:
            if row.status != OK:
                self.head(row.number, row.revision)  # raises what is wrong
            self._warn_of_revisions_above(row)
            try:
                return row, self.manifest(row)
            except NotFoundError:
                return None  # deleted since the listing
            except UnsupportedError:
                raise
            except FormatError as error:
                if row.revision == 0:
                    raise
                _log.warning("%s is damaged and passed over: %s", row.key, error)
                row = self._look(number, row.revision - 1)
        return None

    def _warn_of_revisions_above(self, row: Listed) -> None:
        for revision in sorted(self._entries[row.number]):
            if revision > row.revision:
                try:
                    self.head(row.number, revision)
                except (FormatError, NotFoundError) as error:
                    _log.warning("a revision is damaged and passed over: %s", error)

    def unreadable(self) -> dict[tuple[int, int], FormatError]:
        """Read every manifest whole; return by (number, revision) why some do not verify.

        While there is any, what it references is unknown and no data may be deleted.
        """
        found: dict[tuple[int, int], FormatError] = {}
        for number, revision in self.names():
            try:
                head = self.head(number, revision)
                if not head.tombstone:
                    self.manifest(self._row(number, revision, OK, None, head))
            except NotFoundError:
                continue  # deleted since the listing
            except FormatError as error:
                found[number, revision] = error
        return found

    def fetch(self, number: int) -> None:
        """Fetch the highest revision whole, in one request, for `readable` to decode."""
        if revisions := self._entries.get(number):
            self._ask(number, max(revisions), MAX_MANIFEST_NBYTES)

    def _ask(self, number: int, revision: int, at_most: int) -> None:
        """Fetch a head for whoever wants to know it next."""
        with contextlib.suppress(FormatError, NotFoundError):  # `head` raises it again
            self.head(number, revision, at_most=at_most)

    def _deleted(self, number: int) -> bool:
        try:
            return self.head(number, 0).tombstone
        except (FormatError, NotFoundError):
            return False

    def _row(
        self, number: int, revision: int, status: str, reason: str | None, head: Head | None
    ) -> Listed:
        key = layout.manifest_key(number, revision)
        return Listed(
            number=number, revision=revision, key=key, status=status, reason=reason, head=head
        )

    def all(self) -> list[Listed]:
        """Return every number, ascending."""
        asked = [
            functools.partial(self._ask, *name, FIRST_READ_NBYTES) for name in self.names()
        ]
        with gc_seldom():
            side_by_side(asked, self._backend.capabilities.requests)
        rows = (self.listed(number) for number in self.numbers)
        return [row for row in rows if row is not None]

    def live(self) -> list[Listed]:
        """Return the numbers whose head verifies, ascending."""
        return [row for row in self.all() if row.status == OK]

    def manifest(self, row: Listed) -> Manifest:
        """Read and check a whole manifest.

        Raises:
            FormatError: and its kinds, when it is not loadable.
            NotFoundError: it was deleted since the listing.
        """
        entry = self._entries[row.number][row.revision]
        known = self._memory.manifests.get(row.key)
        if known is not None and known[0] == entry:
            return known[1]
        try:
            manifest = self._read(entry)
        except FormatError as error:
            self._check_unreplaced(entry, error)
            raise type(error)(error.message, key=row.key, url=self._backend.url) from error
        self._memory.add(entry, manifest)
        return manifest

    def _read(self, entry: Entry) -> Manifest:
        key, head, data = self._last
        if key != entry.key or head is None:
            head, data = self._begin(entry, entry.nbytes)
        if head.tombstone:
            raise NotFoundError("deleted since the listing", key=entry.key)
        if len(data) < entry.nbytes:
            data += self._backend.read(entry.key, len(data), entry.nbytes - len(data))
        with gc_paused():
            return Manifest.decode(data, head=head)


def scan(backend: Backend, memory: Memory) -> Catalog:
    """List the manifests of a store."""
    return Catalog(backend, memory, backend.list(layout.MANIFESTS))


def _summary_end(data: bytes) -> int:
    if len(data) < HEADER_NBYTES:
        return len(data)
    return HEADER_NBYTES + int.from_bytes(data[16:24], "little")
