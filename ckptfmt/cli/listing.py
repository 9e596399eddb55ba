"""What a store holds, loadable or not."""

from __future__ import annotations

from dataclasses import dataclass

from ckptfmt import Checkpoint, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of a store."""

    number: int
    status: str  # ok, damaged, newer (than this release can read), deleted
    reason: str | None = None  # why it is not ok
    checkpoint: Checkpoint | None = None  # None unless ok


def rows(store: Store) -> list[Row]:
    """Return every number of a store, ascending."""
    loadable = {checkpoint.number: checkpoint for checkpoint in store}
    found = []
    for entry in store.entries():
        status = "deleted" if entry.status == "tombstone" else entry.status
        checkpoint = loadable.get(entry.number) if status == "ok" else None
        if status != "ok" or checkpoint is not None:  # else it was saved between the listings
            found.append(
                Row(
                    number=entry.number,
                    status=status,
                    reason=entry.reason,
                    checkpoint=checkpoint,
                )
            )
    return found
