"""Run the real engine under chosen interleavings of its storage operations.

Each actor runs in a thread of its own, and its backend hands the baton on before every
operation: exactly one actor runs at a time, so a schedule is a list of the points at which the
baton went elsewhere, and can be replayed. A dead actor never touches storage again. Where a
case says so, the reply to a change is lost, a create comes late, or storage cannot refuse one.

`explore` tries schedules in order of their number of deviations (preemptions, at most two, at
most one death, at most one lost reply), all of them where they fit the budget and a seeded
sample where they do not, then random ones. `World` watches every operation and judges what must
hold at all times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar, final

from ckptfmt.backends import Backend, Buffer, Capabilities, Entry, MemoryBackend, Upload
from ckptfmt.errors import BackendError, CheckpointError, ConflictError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.manifest import Manifest, decode_head
from ckptfmt.format.records import COPY, Intent
from ckptfmt.options import Sources

T = TypeVar("T")
U = TypeVar("U")

MAX_PREEMPTIONS: Final = 2
CHANGES: Final = frozenset({"begin", "create", "replace", "write", "delete", "end"})
DIE: Final = -1  # a choice: the actor whose turn it is dies instead
LOSE: Final = -2  # … its change takes effect, and the connection breaks before the answer
MEET: Final = -3  # … its client sends the create again, and meets its own object
LATE: Final = -4  # … the connection breaks; the create takes effect when `deliver` is called
LOST: Final = {
    LOSE: "loses the reply of",
    MEET: "repeats",
    LATE: "sends, and waits in vain for",
}
HANG_SECONDS: Final = 120.0  # of a baton that nobody hands on: a fault of this file


class Death(BaseException):
    """The process of this actor died here. No handler of the library can catch it."""


@dataclass(slots=True)
class Clock:
    """Storage time goes on by a second with each change; the own clock only by `pass_days`."""

    changes: int = 0
    days: float = 0.0

    def storage(self) -> float:
        """Return the time by the storage's clock."""
        self.changes += 1
        return self.days * 86400 + self.changes

    def monotonic(self) -> float:
        """Return the time by the writers' clocks."""
        return self.days * 86400


def sources(clock: Clock, actor: int) -> Sources:
    """Return deterministic sources; the first digit of each id says whose it is."""
    ids = itertools.count(1)
    return Sources(
        now=lambda: 1_000_000,
        monotonic=clock.monotonic,
        save_id=lambda: f"{actor:x}{next(ids):023x}",
    )


@dataclass(slots=True)
class World:
    """One shared store and all that was ever seen to happen to it."""

    backend: MemoryBackend
    clock: Clock
    create_if_absent: bool = True  # else a create looks, then stores: two operations
    parts: bool = False  # a data file is begun, then completed: two operations
    late: bool = False  # a create of a manifest may arrive late
    sent: list[tuple[str, bytes]] = field(default_factory=list)  # and is on its way
    uploads: dict[str, Upload] = field(default_factory=dict)  # begun, not completed; by token
    landed: dict[int, set[str]] = field(default_factory=dict)  # number → checkpoint ids
    deleted: set[str] = field(default_factory=set)  # checkpoint ids a tombstone replaced
    acknowledged: dict[str, int] = field(default_factory=dict)  # checkpoint id → number
    pinned: set[str] = field(default_factory=set)  # checkpoint ids of acknowledged pins
    slimmed: set[str] = field(default_factory=set)  # checkpoint ids that lost a section
    files: dict[str, frozenset[str]] = field(default_factory=dict)  # live manifest → data
    problems: list[str] = field(default_factory=list)

    def create(self, key: str, data: Buffer) -> None:
        """Store an object as this storage does."""
        if self.create_if_absent:
            self.backend.create(key, data)
        else:
            self.backend.replace(key, data)
        self.changed("create", key, data)

    def deliver(self) -> None:
        """Let arrive what was sent."""
        while self.sent:
            with contextlib.suppress(ConflictError):
                self.create(*self.sent.pop())

    def end(self, upload: Upload) -> None:
        """Give an upload up, and judge whether somebody needed it."""
        if self.uploads.pop(upload.token, None) is None:
            raise NotFoundError("no such upload", key=upload.key)
        names = [layout.parse_manifest_key(k) for k in self.backend.list(layout.MANIFESTS)]
        for key in self.backend.list(layout.INTENTS):
            intent = Intent.decode(self.backend.read(key))
            own = intent.save == layout.data_save_id(upload.key)
            if (own and all(n < intent.number for n, _ in names)) or (
                intent.kind == COPY
                and upload.key in intent.reuse
                and (intent.number, intent.revision) not in names
            ):
                self.problems.append(f"{upload.key} was taken from {key}, which is in flight")

    def changed(self, kind: str, key: str, data: Buffer | None) -> None:
        """Judge one change that has just taken effect."""
        if key.startswith(layout.DATA + "/") and kind == "delete":
            holders = [m for m, files in self.files.items() if key in files]
            self.problems += [f"{m} lost {key}" for m in holders]
        name = layout.parse_manifest_key(key)
        if name is not None:
            if kind == "delete" and key in self.files:
                self.problems.append(f"manifest of a live checkpoint removed: {key}")
            if data is not None:
                self._manifest(key, name, bytes(data))

    def _manifest(self, key: str, name: tuple[int, int], data: bytes) -> None:
        head = decode_head(data)
        number, id_ = head.summary.number, head.summary.id
        living = [k for k in self.files if layout.parse_manifest_key(k)[0] == number]
        if head.tombstone:
            if name[1]:
                return  # blocks only this name
            for old in living:
                del self.files[old]
            if id_ is not None:
                self.deleted.add(id_)
                if id_ in self.pinned:
                    self._wrong(f"pinned checkpoint {number} deleted")
            elif self.landed.get(number):
                self._wrong(f"a broken lease hit the landed checkpoint {number}")
            return
        if name[1]:
            if not living:
                return  # a revision of a deleted number: nobody reads it
            if self.pinned.intersection([id_]) - self.slimmed:
                self._wrong(f"pinned checkpoint {number} slimmed")
            self.slimmed.add(str(id_))
            for old in living:
                del self.files[old]
        ids = self.landed.setdefault(number, set())
        ids.add(str(id_))
        if len(ids) > 1:
            self._wrong(f"number {number} denotes {sorted(ids)}")
        if id_ in self.deleted:
            self._wrong(f"checkpoint {number} rose again")
        self.files[key] = frozenset(f.key for f in Manifest.decode(data).tables.files)
        missing = self.files[key] - self.backend.list(layout.DATA).keys()
        self.problems += [f"{key} committed without {name}" for name in sorted(missing)]

    def _wrong(self, problem: str) -> None:
        """Note what may not be where a create is refused; else one writer at a time may."""
        if self.create_if_absent:
            self.problems.append(problem)

    def pin_acknowledged(self, id_: str) -> None:
        """Note a pin that its owner relies on from now on."""
        self.pinned.add(id_)
        if id_ in self.deleted:
            self._wrong(f"acknowledged pin of {id_}, which is deleted")


@dataclass(slots=True, eq=False)
class Actor:
    """One process beside others: what it does, and how that went."""

    name: str
    act: Callable[[World, Backend, Sources], None]
    allowed: tuple[type[CheckpointError], ...]  # errors that are an honest answer
    mortal: bool = True
    index: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)
    over: bool = False
    dead: bool = False
    lost: bool = False  # a reply, or its upload: then BackendError is an honest answer
    doing: str = "start"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A moment before an operation (or after an actor's last): who could have gone on."""

    current: int  # whose turn it was; -1 when that actor is over
    enabled: tuple[int, ...]
    mortal: bool  # a death here makes a difference
    faults: tuple[int, ...]  # what else can go wrong here


Plan = tuple[tuple[int, int], ...]  # (point, choice), ascending; elsewhere: who runs, runs on


class Baton:
    """Lets one actor run at a time, by a policy."""

    def __init__(
        self, actors: Sequence[Actor], policy: Callable[[int, Point], int | None]
    ) -> None:
        self._actors = actors
        self._policy = policy
        self._done = threading.Lock()
        self.points: list[Point] = []
        self.trace: list[str] = []

    def run(self, world: World) -> None:
        """Run all actors to their ends."""
        for lock in [self._done, *(a.turn for a in self._actors)]:
            lock.acquire()
        threads = [
            threading.Thread(target=self._live, args=(world, actor), daemon=True)
            for actor in self._actors
        ]
        for thread in threads:
            thread.start()
        self._hand_on(None)
        _take(self._done)
        for thread in threads:
            thread.join()

    def before(self, actor: Actor, kind: str, key: str, late: bool = False) -> int:
        """Wait for the turn to do one operation; return what goes wrong with it, or 0."""
        if actor.dead:
            raise Death
        actor.doing = f"{kind} {key}"
        faults = [LOSE] if kind in CHANGES else []
        faults += [MEET] if kind == "create" else []
        faults += [LATE] if late else []
        chosen = self._choose(actor, kind in CHANGES, tuple(faults))
        if chosen == DIE:
            actor.dead = True
            self.trace.append(f"{actor.name} dies before {actor.doing}")
            raise Death
        if chosen in LOST:
            actor.lost = True
            self.trace.append(f"{actor.name} {LOST[chosen]} {actor.doing}")
            return chosen
        if chosen != actor.index:
            self._actors[chosen].turn.release()
            _take(actor.turn)
        self.trace.append(f"{actor.name} {kind} {key}")
        return 0

    def _live(self, world: World, actor: Actor) -> None:
        _take(actor.turn)
        own = Guarded(world, self, actor)
        try:
            actor.act(world, own, sources(world.clock, actor.index + 1))
        except Death:
            pass
        except BaseException as error:
            actor.error = error
        actor.over = True
        self._hand_on(actor)

    def _hand_on(self, actor: Actor | None) -> None:
        if all(a.over for a in self._actors):
            self._done.release()
        else:
            self._actors[self._choose(None, False, ())].turn.release()

    def _choose(self, actor: Actor | None, change: bool, faults: tuple[int, ...]) -> int:
        enabled = tuple(a.index for a in self._actors if not a.over)
        current = -1 if actor is None else actor.index
        mortal = actor is not None and change and actor.mortal
        point = Point(current, enabled, mortal, faults)
        chosen = self._policy(len(self.points), point)
        self.points.append(point)
        if chosen is None or chosen not in (DIE, *faults, *enabled):
            return current if current >= 0 else enabled[0]
        return chosen


def _take(lock: threading.Lock) -> None:
    if not lock.acquire(timeout=HANG_SECONDS):
        raise RuntimeError("no actor handed the baton on")


@final
class Guarded:
    """A backend that waits for its turn before every operation."""

    def __init__(self, world: World, baton: Baton, actor: Actor) -> None:
        self._world, self._baton, self._actor = world, baton, actor

    @property
    def url(self) -> str:
        return self._world.backend.url

    @property
    def capabilities(self) -> Capabilities:
        known = self._world.backend.capabilities
        return dataclasses.replace(known, create_if_absent=self._world.create_if_absent)

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        if not self._world.create_if_absent:
            self._baton.before(self._actor, "look", key)
            if key in self._world.backend.list(key.rpartition("/")[0]):
                raise ConflictError("object exists", key=key)
        late = self._world.late and key.startswith(layout.MANIFESTS)
        fault = self._baton.before(self._actor, "create", key, late)
        if fault == LATE:
            self._world.sent.append((key, bytes(data)))
        else:
            try:
                self._world.create(key, data)
            except ConflictError:
                if fault != LOSE:
                    raise
        if fault == MEET:
            raise ConflictError("object exists", key=key)
        _lose(fault, key)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        fault = self._baton.before(self._actor, "replace", key)
        self._world.backend.replace(key, data, durable=durable)
        self._world.changed("replace", key, data)
        _lose(fault, key)

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        uploads, token = self._world.uploads, f"{self._actor.name}{key}"
        if self._world.parts:
            _lose(self._baton.before(self._actor, "begin", key), key)
            uploads[token] = Upload(key=key, token=token, began=self._world.clock.storage())
        fault = self._baton.before(self._actor, "write", key)
        if self._world.parts and uploads.pop(token, None) is None:
            self._actor.lost = True
            raise BackendError("no such upload", key=key)
        self._world.backend.write(key, blocks, nbytes=nbytes, durable=durable)
        self._world.changed("write", key, None)
        _lose(fault, key)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        self._baton.before(self._actor, "read", key)
        return self._world.backend.read(key, offset, nbytes)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self._baton.before(self._actor, "read_into", key)
        self._world.backend.read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        self._baton.before(self._actor, "map", key)
        return self._world.backend.map(key, offset, nbytes)

    def list(self, prefix: str) -> dict[str, Entry]:
        self._baton.before(self._actor, "list", prefix)
        return self._world.backend.list(prefix)

    def delete(self, key: str) -> None:
        fault = self._baton.before(self._actor, "delete", key)
        self._world.backend.delete(key)
        self._world.changed("delete", key, None)
        _lose(fault, key)

    def uploads(self, prefix: str) -> list[Upload]:
        if not self._world.parts:
            return []
        self._baton.before(self._actor, "uploads", prefix)
        return list(self._world.uploads.values())

    def end(self, upload: Upload) -> None:
        fault = self._baton.before(self._actor, "end", upload.key)
        self._world.end(upload)
        _lose(fault, upload.key)

    def deliver(self) -> None:
        """Let arrive what others have sent."""
        self._baton.before(self._actor, "deliver", "")
        self._world.deliver()


def _lose(fault: int, key: str) -> None:
    if fault:
        raise BackendError("the connection broke", key=key)


class Inline:
    """In place of `_engine.threads.Threads`: the same results without threads.

    They only compute digests, and starting them would take most of the time of a schedule.
    """

    def __init__(self, count: int, name: str) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ordered(self, task: Callable[[T], U], work: Iterable[T], *, ahead: int) -> Iterator[U]:
        """Run `task` over `work` right here."""
        return map(task, work)


@dataclass(frozen=True, slots=True)
class Case:
    """Actors over a prepared store, and how to judge what they left."""

    actors: tuple[Actor, ...]
    world: Callable[[], World]
    judge: Callable[[World, Sequence[Actor]], list[str]]
    losses: int = 0  # how many replies may be lost


@dataclass(slots=True)
class Found:
    """What an exploration saw."""

    schedules: int = 0
    complete: bool = False  # every schedule within the bounds was run
    problems: list[str] = field(default_factory=list)  # of the first bad schedule
    trace: list[str] = field(default_factory=list)


def explore(case: Case, *, budget: int, seed: int, deaths: int = 1) -> Found:
    """Run schedules until one violates something or `budget` of them have passed.

    Four fifths of the budget go to planned schedules, fewest deviations first; the rest, and
    what the planned ones leave over, to random ones.
    """
    chance = random.Random(seed)
    found = Found()
    level: list[Plan] = [()]
    while level:
        room = budget * 4 // 5 - found.schedules
        if len(level) > room:
            level = chance.sample(level, room)
            found.complete = False
        elif not found.schedules:
            found.complete = True
        following: list[Plan] = []
        for plan in level:
            points = _run(case, found, _planned(plan))
            if found.problems:
                return found
            following += _deviations(plan, points, deaths, case.losses)
        level = following
    while not found.complete and found.schedules < budget:
        _run(case, found, _random(chance, deaths, case.losses))
        if found.problems:
            return found
    return found


def _run(case: Case, found: Found, policy: Callable[[int, Point], int | None]) -> list[Point]:
    world = case.world()
    actors = [
        dataclasses.replace(a, index=n, turn=threading.Lock())
        for n, a in enumerate(case.actors)
    ]
    baton = Baton(actors, policy)
    baton.run(world)
    found.schedules += 1
    problems = world.problems + [
        f"{a.name} at {a.doing}: {type(a.error).__name__}: {a.error}"
        for a in actors
        if a.error is not None
        and not isinstance(a.error, (*a.allowed, BackendError) if a.lost else a.allowed)
    ]
    found.problems = problems or case.judge(world, actors)
    found.trace = baton.trace if found.problems else []
    return baton.points


def _planned(plan: Plan) -> Callable[[int, Point], int | None]:
    choices = dict(plan)
    return lambda at, _: choices.get(at)


def _random(
    chance: random.Random, deaths: int, losses: int
) -> Callable[[int, Point], int | None]:
    own = random.Random(chance.random())
    rate = own.choice((0.05, 0.2, 0.5))
    fatal = own.randrange(100) if deaths and own.random() < 0.5 else None
    lossy = own.randrange(100) if losses else None

    def policy(at: int, point: Point) -> int | None:
        nonlocal fatal, lossy
        if lossy is not None and at >= lossy and point.faults:
            lossy = None
            return own.choice(point.faults)
        if fatal is not None and at >= fatal and point.mortal:
            fatal = None
            return DIE
        return own.choice(point.enabled) if own.random() < rate else None

    return policy


def _deviations(plan: Plan, points: Sequence[Point], deaths: int, losses: int) -> list[Plan]:
    """Return `plan` with one more deviation after its last, as far as the bounds allow."""
    last = plan[-1][0] if plan else -1
    preempted = sum(c >= 0 and points[at].current >= 0 for at, c in plan)
    died = sum(c == DIE for _, c in plan)
    lost = sum(c in LOST for _, c in plan)
    found: list[Plan] = []
    for at in range(last + 1, len(points)):
        point = points[at]
        usual = point.current if point.current >= 0 else point.enabled[0]
        if point.current < 0 or preempted < MAX_PREEMPTIONS:
            found += [(*plan, (at, other)) for other in point.enabled if other != usual]
        if point.mortal and died < deaths:
            found.append((*plan, (at, DIE)))
        if lost < losses:
            found += [(*plan, (at, fault)) for fault in point.faults]
    return found


def explained(found: Found) -> str:
    """Return a report of a violation: what is wrong, and the schedule that led there."""
    steps = [*found.problems, "after:", *found.trace]
    return f"schedule {found.schedules}:\n" + "\n".join(steps)
