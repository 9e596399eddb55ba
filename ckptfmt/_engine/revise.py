"""Commit the next revision of a checkpoint, which lacks some of its sections (spec §9.3.5).

    manifests → intent → pins → manifests → new manifest → read back → remove the intent

The data that only the revision before referenced is freed by `retire`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ckptfmt._engine import catalog, slim
from ckptfmt._engine.catalog import Catalog, Listed
from ckptfmt._engine.commit import commit
from ckptfmt._engine.leases import discard
from ckptfmt._engine.notes import Notes
from ckptfmt._engine.upkeep import Upkeep
from ckptfmt.errors import ConflictError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.manifest import Manifest
from ckptfmt.options import FENCE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A revision that could be made of what a listing shows."""

    row: Listed  # what it is made of
    manifest: Manifest  # of `row`
    after: Manifest  # what it would be
    save_id: str

    @property
    def files(self) -> frozenset[str]:
        """The data files that it references."""
        return frozenset(file.key for file in self.after.tables.files)

    @property
    def freed(self) -> frozenset[str]:
        """The data files that it lets go."""
        return frozenset(file.key for file in self.manifest.tables.files) - self.files


def plan(at: Upkeep, now: Catalog, number: int, drop: Collection[str]) -> Revision | None:
    """Return the revision of a checkpoint without some sections; None if it lacks them.

    Raises:
        NotFoundError: no such checkpoint, or it never had such a section.
        UsageError: nothing would be left, or it was revised too often.
        FormatError: and its kinds: a revision of it is damaged, or needs a newer release.
    """
    row = now.listed(number)
    if row is None or row.status == catalog.TOMBSTONE:
        what = "no such checkpoint" if row is None else "checkpoint was deleted"
        raise NotFoundError(what, number=number, url=now.url)
    present = now.revisions(number)
    for revision in present:
        # One that cannot be read may lack what this one would be made of.
        now.head(number, revision)
    manifest = now.manifest(row)
    manifest.summary.features.require("write", number=number)
    if present[-1] == layout.MAX_REVISION:
        raise UsageError("no revision is left of this checkpoint", number=number)
    save_id = at.sources.save_id()
    after = slim.without(
        manifest, drop, revision=present[-1] + 1, save=save_id, time=at.sources.time()
    )
    if after is manifest:
        return None
    return Revision(row=row, manifest=manifest, after=after, save_id=save_id)


def revise(at: Upkeep, revision: Revision, *, began: float, skip_pinned: bool) -> bool:
    """Commit a revision: all or nothing.

    Args:
        began: When the listing was made that it was planned from, by the monotonic clock.
        skip_pinned: Leave a pinned checkpoint, and return False, instead of refusing.

    Raises:
        UsageError: the checkpoint is pinned.
        ConflictError: it was deleted or revised meanwhile; nothing was changed.
        BackendError: storage failed; when the outcome is unknown it says so.
    """
    after, save_id = revision.after, revision.save_id
    number = after.summary.number
    data = after.encode()
    sent = False
    try:
        at.leases.save(
            save_id,
            number=number,
            revision=after.summary.revision,
            base=(number, revision.row.revision),
            reuse=sorted(revision.files),
        )
        if Notes(at.backend).holds()(revision.manifest.summary):
            if skip_pinned:
                return False
            raise UsageError(
                "checkpoint is pinned: remove its tag 'pinned' first", number=number
            )
        if not catalog.scan(at.backend, at.memory).shows(revision.row):
            raise ConflictError("checkpoint was deleted or revised meanwhile", number=number)
        if at.sources.monotonic() - began > FENCE_SECONDS / 2:
            raise ConflictError("the revision took too long to be safe: start it again")
        sent = True
        key = layout.manifest_key(number, after.summary.revision)
        commit(at.backend, key, data, save_id=save_id, lease=save_id, durable=at.durable)
    finally:
        if not sent:
            discard(at.backend, [layout.intent_key(save_id)])
    discard(at.backend, [layout.intent_key(save_id)])
    return True
