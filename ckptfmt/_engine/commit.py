"""The commit point: one create-if-absent, settled by reading back (spec §8.4)."""

from __future__ import annotations

from ckptfmt.backends.base import Backend
from ckptfmt.errors import BackendError, ConflictError, FormatError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.manifest import decode_head


class TombstoneConflictError(ConflictError):
    """The number was taken by a tombstone: somebody broke the lease of this save."""


def commit(
    backend: Backend, key: str, data: bytes, *, save_id: str, lease: str, durable: bool
) -> None:
    """Create the manifest: the single instant at which the checkpoint comes into being.

    A response can be lost after the object has landed, and some stores accept two creators, so
    every outcome is settled by reading back: our own bytes mean success. This is sound because
    a manifest carries the random id of its save and is never rewritten.

    Args:
        save_id: Of the checkpoint that `data` commits.
        lease: The save id of the intent under which this happens.

    Raises:
        ConflictError: another writer holds `key`; nothing was changed. A tombstone there is
            `TombstoneConflictError`.
        BackendError: storage failed and the outcome is unknown, or the storage has no
            create-if-absent and the lease of this save is gone (spec §8.9.2). Data files and
            intent must stay: a manifest that did land is then found by the next listing.
    """
    error: BackendError | ConflictError | None = None
    try:
        backend.create(key, data, durable=durable)
    except (ConflictError, BackendError) as failed:
        error = failed
    found = _read_back(backend, key, error)
    if found == data:
        _check_lease(backend, key, lease)
        return
    if found is None:
        raise BackendError(
            "outcome of the commit is unknown: the manifest was sent and is not visible;"
            " open the store again and look before repeating the save",
            key=key,
            url=backend.url,
        ) from error
    _raise_conflict(key, found, save_id, error)


def _check_lease(backend: Backend, key: str, lease: str) -> None:
    """Where a tombstone cannot stop a commit, see whether others gave it up (spec §8.9.2)."""
    if backend.capabilities.create_if_absent:
        return
    intent = layout.intent_key(lease)
    try:
        backend.read(intent)
    except NotFoundError as error:
        raise BackendError(
            "outcome of the commit is unknown: its lease was removed before it was over, so"
            " that its data may be gone; verify the checkpoint before relying on it",
            key=key,
            lease=intent,
        ) from error


def _read_back(backend: Backend, key: str, error: Exception | None) -> bytes | None:
    try:
        return backend.read(key)
    except NotFoundError:
        return None
    except BackendError as unreadable:
        raise BackendError(
            "outcome of the commit is unknown: the manifest was sent and cannot be read back;"
            " open the store again and look before repeating the save",
            key=key,
            url=backend.url,
        ) from (error or unreadable)


def _raise_conflict(key: str, found: bytes, save_id: str, error: Exception | None) -> None:
    """Raise for a name that holds other bytes, unless those say that ours were there."""
    try:
        head = decode_head(found)
    except FormatError:
        raise ConflictError("another writer holds this number", key=key) from error
    if head.tombstone:
        if head.summary.id == save_id:
            return  # committed, then deleted by somebody: the save did happen
        raise TombstoneConflictError("this number was deleted meanwhile", key=key) from error
    raise ConflictError(
        "another writer committed this number first: reload its checkpoint, then save again",
        key=key,
        by=head.summary.save,
    ) from error
