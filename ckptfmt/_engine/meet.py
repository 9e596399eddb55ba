"""The ranks of one save agree on it, while all of them wait (spec §8.7.1).

    what each rank holds → rank 0: merge, number, intent, base → who writes what → each rank

The only collective calls of a save. An error on one rank is told to all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ckptfmt._engine import agree, attempt, catalog
from ckptfmt._engine.agree import Merged
from ckptfmt._engine.attempt import Attempt, Request
from ckptfmt._engine.catalog import Memory
from ckptfmt._engine.leases import discard
from ckptfmt._engine.plan import Piece
from ckptfmt._engine.request import with_leaves
from ckptfmt._engine.save import Job
from ckptfmt.backends.base import Backend
from ckptfmt.errors import BackendError, CheckpointError, FormatError, NotFoundError
from ckptfmt.format import digest, layout
from ckptfmt.format.manifest import Manifest
from ckptfmt.format.parts import message, read_message
from ckptfmt.group import Group
from ckptfmt.options import WriteOptions

_log: Final = logging.getLogger("ckptfmt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one rank has to do after `meet`."""

    request: Request  # leaves carry the paths of the merged tree
    own: Attempt  # the same save on every rank
    rank: int
    world: int
    pieces: Sequence[Piece]  # what this rank writes; `leaf` is an index into its own leaves
    first_file: int
    digest: digest.Digest
    timeout_seconds: float
    merged: Merged | None = None  # rank 0 only, as are the next two
    orders: Sequence[Sequence[tuple[Piece, int]]] = ()  # of all ranks, `leaf` is a row
    chunk_nbytes: int = 0

    @property
    def intent(self) -> str:
        """Key of the intent of this save."""
        return layout.intent_key(self.own.save_id)

    @property
    def part(self) -> str:
        """Key of this rank's part."""
        return layout.intent_key(self.own.save_id, self.rank)


def meet(
    backend: Backend,
    memory: Memory,
    ask: Callable[[], Request],
    options: WriteOptions,
    *,
    group: Group,
    timeout_seconds: float,
) -> Task:
    """Agree with all ranks on one save; called by all of them, each with its own state.

    Args:
        ask: Returns what this rank wants saved. Whatever it raises, no rank goes on. All but
            the state is taken from rank 0.
        timeout_seconds: How long each step waits for the others.

    Raises:
        CheckpointError: on every rank, what went wrong on one; nothing was changed.
        Exception: what `ask` raised here; the other ranks get a BackendError that quotes it.
        BackendError: a rank did not answer in time.
    """
    wanted: Request | Exception
    try:
        wanted = ask()
        told = message(agree.share(wanted.payload.flat))
    except Exception as error:
        wanted, told = error, message(_failure(error))
    shares = group.gather(told, timeout_seconds)
    lead = _Lead(backend, memory, wanted, options, group.size) if shares is not None else None
    orders = lead.orders(shares) if lead and shares else {}
    done = False
    try:
        # Rank 0 may itself have waited so long for the last of us.
        said = read_message(group.broadcast(message(orders), 2 * timeout_seconds))
        done = True
    finally:
        if lead is not None and not done:
            lead.give_up()
    if isinstance(wanted, Exception):
        raise wanted
    if lead is not None and lead.error is not None:
        raise lead.error
    if "failed" in said:
        raise _raised(said)
    return _task(backend, memory, wanted, said, group, timeout_seconds, options, lead)


class _Lead:
    """What only rank 0 does in `meet`."""

    def __init__(
        self,
        backend: Backend,
        memory: Memory,
        request: Request | Exception,
        options: WriteOptions,
        world: int,
    ) -> None:
        self._backend = backend
        self._memory = memory
        self._request = request
        self._options = options
        self._world = world
        self.error: Exception | None = None
        self.own: Attempt | None = None
        self.merged: Merged | None = None
        self.pieces: Sequence[Sequence[tuple[Piece, int]]] = ()
        self.chunk_nbytes = 0

    def orders(self, shares: Sequence[bytes]) -> dict[str, Any]:
        """Return what the ranks are told: who writes what, or what is wrong."""
        done = False
        try:
            orders = self._orders([read_message(one) for one in shares])
            done = True
        except Exception as error:
            self.error = error
            orders = _failure(error)
        finally:
            if not done:
                self.give_up()
        return orders

    def _orders(self, shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for rank, one in enumerate(shares):
            if "failed" in one:
                raise _raised(one, f"rank {rank} cannot take part: ")
        if isinstance(self._request, Exception):
            raise self._request
        merged = agree.merge(shares)
        own = attempt.begin(self._backend, self._memory, self._request, self._options)
        self.own, self.merged = own, merged
        job = Job(self._backend, self._request, self._options, own)
        algorithm = job.algorithm()
        self.chunk_nbytes = job.chunk_nbytes(sum(row.array.nbytes for row in merged.rows))
        base = own.base.tables if own.base is not None else None
        pieces = agree.cut(merged.rows, self.chunk_nbytes)
        self.pieces = agree.assign(merged.rows, pieces, self._world, base)
        return {
            "save": own.save_id,
            "number": own.number,
            "base": own.base and [own.base.summary.number, own.base.summary.save],
            "digest": algorithm.name,
            "paths": _renamed(merged, shares),
            "pieces": [
                [[leaf, p.nth, p.start, p.shape, p.nbytes] for p, leaf in mine]
                for mine in self.pieces
            ],
        }

    def give_up(self) -> None:
        """Take the intent back."""
        if self.own is not None:
            discard(self._backend, [layout.intent_key(self.own.save_id)])


def _renamed(merged: Merged, shares: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return [rank, leaf, path] where a rank met a tied array under another of its paths."""
    return [
        [holder.rank, holder.leaf, row.array.path]
        for row in merged.rows
        if row.aliases
        for holders in row.boxes.values()
        for holder in holders
        if shares[holder.rank]["arrays"][holder.leaf][0] != row.array.path
    ]


def _failure(error: Exception) -> dict[str, Any]:
    """Return an error as plain values; one that is not ours becomes a `BackendError`."""
    if not isinstance(error, CheckpointError):
        text = f"{type(error).__name__}: {error}"
        return {"failed": BackendError.__name__, "message": text, "where": {}}
    where = {name: _plain(value) for name, value in error.where.items()}
    return {"failed": type(error).__name__, "message": error.message, "where": where}


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def _raised(said: Mapping[str, Any], prefix: str = "") -> CheckpointError:
    """Return an error of another rank."""
    kinds = {kind.__name__: kind for kind in _kinds(CheckpointError)}
    error = kinds.get(said["failed"], BackendError)(prefix + said["message"])
    error.where.update(said["where"])
    return error


def _kinds(kind: type[CheckpointError]) -> list[type[CheckpointError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


def _task(
    backend: Backend,
    memory: Memory,
    request: Request,
    said: Mapping[str, Any],
    group: Group,
    timeout_seconds: float,
    options: WriteOptions,
    lead: _Lead | None,
) -> Task:
    leaves = list(request.payload.flat.leaves)
    for rank, leaf, path in said["paths"]:
        if rank == group.rank:
            leaves[leaf] = leaves[leaf]._replace(path=path)
    mine = said["pieces"][group.rank]
    common = Task(
        request=replace(request, payload=with_leaves(request.payload, leaves)),
        own=Attempt(
            save_id=said["save"], number=said["number"], began=options.sources.monotonic()
        ),
        rank=group.rank,
        world=group.size,
        pieces=[
            Piece(leaf, nth, tuple(start), tuple(shape), nbytes)
            for leaf, nth, start, shape, nbytes in mine
        ],
        # No two ranks make a file of one name: each file has a piece at least.
        first_file=sum(len(own) for own in said["pieces"][: group.rank]),
        digest=digest.DIGESTS[said["digest"]],
        timeout_seconds=timeout_seconds,
    )
    if lead is not None and lead.own is not None:
        return replace(
            common,
            own=lead.own,
            merged=lead.merged,
            orders=lead.pieces,
            chunk_nbytes=lead.chunk_nbytes,
        )
    if said["base"] is not None:
        common.own.base = _base(backend, memory, *said["base"])
    return common


def _base(backend: Backend, memory: Memory, number: int, save: str) -> Manifest | None:
    """Return the base that rank 0 has chosen; its files are pinned by the intent."""
    try:
        now = catalog.scan(backend, memory)
        row = now.listed(number)
        manifest = None if row is None or row.status != catalog.OK else now.manifest(row)
    except (BackendError, FormatError, NotFoundError) as error:
        _log.debug("checkpoint %d is no base for reuse here: %s", number, error)
        return None
    return manifest if manifest is not None and manifest.summary.save == save else None
