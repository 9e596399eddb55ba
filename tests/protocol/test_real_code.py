"""The commit, delete and collect protocol, on the code that really runs (spec §8, §10).

Stores save, delete, sweep, pin and read beside each other over one backend in memory, under
thousands of schedules of their storage operations, each with at most one process dying; some of
them with a reply that is lost, without create-if-absent, or with uploads in parts. The lower
half breaks the engine in one place at a time and shows that this is found out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt._engine import (
    attempt,
    catalog,
    collect,
    commit,
    fill,
    leases,
    plan,
    retire,
    revise,
    save,
)
from ckptfmt._engine.notes import Notes
from ckptfmt._engine.upkeep import Upkeep
from ckptfmt.backends import Backend, MemoryBackend, Upload
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import (
    BackendError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from ckptfmt.format import layout
from ckptfmt.format.records import Intent
from ckptfmt.options import Sources

HERE: Final = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # --import-mode=importlib does not

from interleave import (  # noqa: E402
    Actor,
    Baton,
    Case,
    Clock,
    Guarded,
    Inline,
    World,
    explained,
    explore,
    sources,
)

BUDGET: Final = 80  # schedules of a case; 20 times as many with CKPTFMT_SOAK=1
MUTANT_BUDGET: Final = 4000  # a search ends with the first violation
FENCE_DAYS: Final = 8.0  # past the fence time
DEAD: Final = "d" * 24  # id of a save that died
TRIES: Final = 4  # of a reader whose checkpoint is deleted under it

W: Final = np.arange(512, dtype=np.int64)  # never changes: what later saves reuse
M: Final = W[::-1].copy()  # the same, and what is dropped


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what takes time and takes no part in the protocol."""
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {"python": "3"})
    monkeypatch.setattr(save, "Threads", Inline)
    monkeypatch.setattr(fill, "Threads", Inline)
    monkeypatch.setattr(plan, "MISC_NBYTES", 1000)  # each section has a file of its own
    logger = logging.getLogger("ckptfmt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


# ---- actors


def state(who: str) -> dict[str, Any]:
    """Return what the save called `who` saves: mostly what everybody saves."""
    own = np.frombuffer(who.encode(), np.uint8)
    return {"model": {"w": W, "own": own}, "optimizer": {"m": M}, "who": who}


def open_store(backend: Backend, own: Sources, *, last: int | None = None) -> Store:
    keep = None if last is None else ckptfmt.keep(last=last)
    return ckptfmt.open(backend, keep=keep, threads=1, sources=own)


def _save(world: World, store: Store, who: str) -> None:
    saved = store.save(state(who))
    world.acknowledged[saved.id] = saved.number


def saver(name: str, *, times: int = 1, last: int | None = None) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        store = open_store(backend, own, last=last)
        if last is not None:  # goes on from the newest, so that its rules may delete that
            with contextlib.suppress(NotFoundError, IntegrityError):
                store.latest().load()
        for n in range(times):
            _save(world, store, f"{name}{n}")

    return Actor(name, act, (ConflictError,))


def deleter(name: str, number: int) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        open_store(backend, own).delete(number)

    return Actor(name, act, (NotFoundError, UsageError, ConflictError))


def copier(name: str, *numbers: int) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        target = open_store(backend, own)
        done = ckptfmt.copy(archive(), target, numbers=numbers, threads=1, sources=own)
        world.acknowledged.update({archive()[n].id: n for n in done.numbers})

    return Actor(name, act, (ConflictError,))


@functools.cache
def archive() -> Store:
    """Return the store that copiers copy from; its checkpoints share a file."""
    store = open_store(MemoryBackend(), sources(Clock(), 13))
    for who in ("x", "y", "z"):
        store.save(state(who))
    return store


def slimmer(name: str, number: int) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        open_store(backend, own).slim(number, drop="optimizer")

    return Actor(name, act, (NotFoundError, UsageError, ConflictError))


def sweeper(name: str, *, break_lease: bool = False) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        open_store(backend, own).collect(break_lease=break_lease)

    return Actor(name, act, ())


def pinner(name: str, number: int) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        store = open_store(backend, own)
        pinned = store.tag(number, "pinned")
        world.pin_acknowledged(pinned.id)
        if world.slimmed.intersection([pinned.id]) and not pinned.dropped:
            world.problems.append("a pin came too late and was acknowledged")

    return Actor(name, act, (NotFoundError, ConflictError))


def reader(name: str) -> Actor:
    def act(world: World, backend: Backend, own: Sources) -> None:
        store = open_store(backend, own)
        for _ in range(TRIES):
            try:
                latest = store.latest()
                found = latest.load()
            except NotFoundError:  # and never damage: it says what became of it
                if not (world.deleted or world.slimmed):
                    raise
            else:
                world.problems += _differences(found, f"{name} read", bool(latest.dropped))
                return

    return Actor(name, act, (), mortal=False)


def calendar(name: str) -> Actor:
    """The fence time passes, at the moment at which this actor gets its turn."""

    def act(world: World, backend: Backend, own: Sources) -> None:
        backend.list(layout.INTENTS)  # the turn
        world.clock.days += FENCE_DAYS

    return Actor(name, act, (), mortal=False)


def network(name: str) -> Actor:
    """What was sent arrives, at the moment at which this actor gets its turn."""

    def act(world: World, backend: Backend, own: Sources) -> None:
        cast(Guarded, backend).deliver()

    return Actor(name, act, (), mortal=False)


# ---- what must hold afterwards


def _differences(found: Any, what: str, dropped: bool = False) -> list[str]:
    want = state(found["who"])
    if dropped:
        del want["optimizer"]
    same = found.keys() == want.keys() and all(
        found[section][n].dtype == a.dtype
        and found[section][n].shape == a.shape
        and found[section][n].tobytes() == a.tobytes()
        for section in want.keys() - {"who"}
        for n, a in want[section].items()
    )
    return [] if same else [f"{what}: not the bytes that {found['who']} saved"]


def _broken(store: Store) -> list[str]:
    """Return what is wrong with the checkpoints of a store at rest."""
    problems: list[str] = []
    for row in store.entries():
        if row.status == "tombstone":
            continue
        try:
            checkpoint = store[row.number]
            what = f"checkpoint {row.number}"
            problems += _differences(checkpoint.load(), what, bool(checkpoint.dropped))
            problems += [str(p) for p in checkpoint.verify().problems]
        except (NotFoundError, IntegrityError) as error:
            problems.append(f"checkpoint {row.number}: {error}")
    return problems


def _lost(world: World, store: Store) -> list[str]:
    live = {checkpoint.id: checkpoint.number for checkpoint in store}
    expected = dict(world.acknowledged)
    for number, ids in world.landed.items():
        expected.update(dict.fromkeys(ids, number))
    return [
        f"checkpoint {number} ({id_}) is lost"
        for id_, number in expected.items()
        if id_ not in world.deleted and live.get(id_) != number
    ]


def _refused(world: World, actors: Sequence[Actor]) -> list[str]:
    """Return landed saves whose caller was told that they did not land.

    Where a create replaces what is there, a save may land and lose its place again to another.
    """
    told = {id_ for id_ in world.acknowledged if not id_.startswith("f")}
    landed = {id_ for ids in world.landed.values() for id_ in ids}
    if not world.create_if_absent:
        landed &= {
            checkpoint.id for checkpoint in open_store(world.backend, sources(Clock(), 11))
        }
    unknown = {a.index for a in actors if a.dead or isinstance(a.error, BackendError)}
    honest = {f"{a.index + 1:x}" for a in actors if a.index not in unknown}
    return [
        f"{id_} landed and was refused"
        for id_ in landed - told
        if id_[0] in honest  # a dead caller was told nothing, others that nobody knows
    ]


def _rest(world: World) -> list[str]:
    """Go on as a restarted job would; return what stays that nobody needs."""
    backend = world.backend
    own = Actor("rest", lambda *_: None, (), mortal=False)
    alone = Guarded(world, Baton([own], lambda at, point: None), own)
    store = open_store(alone, sources(world.clock, 14))
    if not world.create_if_absent:  # one writer at a time: what stands there must be whole
        _save(world, store, "after")
        store.collect(break_lease=True)
        return _broken(store)
    problems = _broken(store) + _lost(world, store)
    try:
        _save(world, store, "after")
    except ConflictError as error:
        return [*problems, f"a fresh job cannot save: {error}"]
    store.collect(break_lease=True)
    blocked = store.collect().blocked
    problems += [f"blocked for good: {why}" for why in blocked]
    problems += _broken(store) + _lost(world, store)
    needed = {f.key for c in store for f in c.manifest.tables.files}
    junk = backend.list(layout.DATA).keys() - needed
    problems += [f"garbage stays: {key}" for key in sorted(junk)]
    problems += [f"parts stay: {upload.key}" for upload in world.uploads.values()]
    for key in backend.list(layout.INTENTS):
        covers = Intent.decode(backend.read(key)).numbers
        if not any(number in store for number in covers):
            problems.append(f"garbage stays: {key}")
    return problems


def judge(world: World, actors: Sequence[Actor]) -> list[str]:
    return _refused(world, actors) + _rest(world)


# ---- cases


def prepared(
    *saves: str, junk: bool = True, dead: bool = False, **how: Any
) -> Callable[[], World]:
    """Return a maker of worlds with the same checkpoints, and a file of a dead save.

    With `dead` a save that has begun an upload died, and has left its lease.
    """
    clock = Clock()
    template = MemoryBackend(clock=clock.storage)
    store = open_store(template, sources(clock, 15))
    made = [store.save(state(who)) for who in saves]
    if junk:
        template.write(f"data/{'e' * 24}-model-0.safetensors", [b"junk"], nbytes=4)

    def world() -> World:
        own = Clock(changes=clock.changes)
        backend = MemoryBackend(clock=own.storage)
        backend._objects.update(template._objects)
        found = World(backend=backend, clock=own, **how)
        if dead:
            aim = leases.Leases(backend=backend, sources=sources(own, 12))
            aim.save(DEAD, number=len(saves) + 1, base=None, reuse=())
            key = f"data/{DEAD}-model-0.safetensors"
            found.uploads[DEAD] = Upload(key=key, token=DEAD, began=own.storage())
        for checkpoint in made:
            found.acknowledged[checkpoint.id] = checkpoint.number
            found.landed[checkpoint.number] = {checkpoint.id}
            files = checkpoint.manifest.tables.files
            key = layout.manifest_key(checkpoint.number)
            found.files[key] = frozenset(f.key for f in files)
        return found

    return world


CASES: Final[dict[str, tuple[tuple[str, ...], tuple[Actor, ...]]]] = {
    "two stores save, one twice with retention": (
        ("p",),
        (saver("a", times=2, last=1), saver("b")),
    ),
    "both retain": (("p", "q"), (saver("a", last=1), saver("b", last=1))),
    "save + delete of its base": (("p",), (saver("a"), deleter("d", 1))),
    "save + collect": (("p",), (saver("a"), sweeper("c"))),
    "save + delete + collect": (("p",), (saver("a"), deleter("d", 1), sweeper("c"))),
    "save + two deletes that share a file": (
        ("p", "q"),
        (saver("a"), deleter("d", 1), deleter("e", 2)),
    ),
    "save + break-lease": (("p",), (saver("a"), sweeper("c", break_lease=True))),
    "two saves + break-lease": (
        ("p",),
        (saver("a"), saver("b", last=1), sweeper("c", break_lease=True)),
    ),
    "save + two sweeps": (
        ("p",),
        (saver("a"), sweeper("c"), sweeper("k", break_lease=True)),
    ),
    "copy + save": (("p",), (copier("k", 2, 3), saver("a"))),
    "copy + save + collect": ((), (copier("k", 1, 2), saver("a", last=1), sweeper("c"))),
    "copy + break-lease": ((), (copier("k", 1), sweeper("c", break_lease=True))),
    "two copies": ((), (copier("k", 1), copier("l", 2))),
    "sleeping copy, fence passes, collect": (
        (),
        (copier("k", 1), saver("b", times=2), calendar("time"), sweeper("c")),
    ),
    "pin + delete": (("p", "q"), (pinner("t", 1), deleter("d", 1))),
    "pin + retention of a save": (("p",), (pinner("t", 1), saver("a", last=1))),
    "pin + delete + save + break-lease": (
        ("p", "q"),
        (pinner("t", 1), deleter("d", 1), saver("a"), sweeper("c", break_lease=True)),
    ),
    "reader + retention": (("p",), (reader("r"), saver("a", times=2, last=1))),
    "reader + save + delete + collect": (
        ("p",),
        (reader("r"), saver("a"), deleter("d", 1), sweeper("c")),
    ),
    "sleeping save, fence passes, collect": (
        ("p",),
        (saver("a"), saver("b", times=2, last=1), calendar("time"), sweeper("c")),
    ),
    "delete of the newest, fence passes, collect": (
        ("p", "q"),
        (saver("a"), deleter("d", 2), calendar("time"), sweeper("c")),
    ),
    "slim + save": (("p",), (slimmer("s", 1), saver("a"))),
    "slim + delete": (("p", "q"), (slimmer("s", 1), deleter("d", 1))),
    "slim + slim + retention of a save": (
        ("p", "q"),
        (slimmer("s", 1), slimmer("t", 2), saver("a", last=1)),
    ),
    "slim + save + collect": (("p",), (slimmer("s", 1), saver("a"), sweeper("c"))),
    "slim + pin": (("p",), (slimmer("s", 1), pinner("t", 1))),
    "slim + save + break-lease": (
        ("p", "q"),
        (slimmer("s", 1), saver("a"), sweeper("c", break_lease=True)),
    ),
    "slim + reader": (("p",), (slimmer("s", 1), reader("r"), saver("a"))),
    "sleeping slim, delete, fence passes, collect": (
        ("p", "q"),
        (slimmer("s", 1), deleter("d", 1), calendar("time"), sweeper("c")),
    ),
    "sleeping delete, fence passes, pin, break-lease": (
        ("p", "q"),
        (
            pinner("t", 1),
            deleter("d", 1),
            calendar("time"),
            sweeper("c", break_lease=True),
        ),
    ),
}


# The same with storage that is worse: how it is, what was saved before, who does what.
HARD: Final[dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[Actor, ...]]]] = {
    "lost reply: retention": ({}, ("p",), (saver("a", times=2, last=1),)),
    "lost reply: two saves": ({}, ("p",), (saver("a"), saver("b", last=1))),
    "lost reply: save + delete of its base": ({}, ("p",), (saver("a"), deleter("d", 1))),
    "lost reply: save + break-lease": (
        {},
        ("p",),
        (saver("a"), sweeper("c", break_lease=True)),
    ),
    "lost reply: copy + save": ({}, (), (copier("k", 1, 2), saver("a"))),
    "lost reply: slim + save": ({}, ("p",), (slimmer("s", 1), saver("a"))),
    "lost reply: pin + delete": ({}, ("p", "q"), (pinner("t", 1), deleter("d", 1))),
    "late create + save": ({"late": True}, ("p",), (saver("a"), saver("b"), network("n"))),
    "late create + break-lease": (
        {"late": True},
        ("p",),
        (saver("a"), sweeper("c", break_lease=True), network("n")),
    ),
    "late create + save with retention + collect": (
        {"late": True},
        ("p",),
        (saver("a"), saver("b", last=1), sweeper("c"), network("n")),
    ),
    "no create-if-absent: save + delete": (
        {"create_if_absent": False},
        ("p",),
        (saver("a"), deleter("d", 1)),
    ),
    "no create-if-absent: save + sweep": (
        {"create_if_absent": False},
        ("p",),
        (saver("a"), sweeper("c", break_lease=True)),
    ),
    "no create-if-absent: slim + delete": (
        {"create_if_absent": False},
        ("p", "q"),
        (slimmer("s", 1), deleter("d", 1)),
    ),
    "no create-if-absent: two saves + delete": (
        {"create_if_absent": False},
        ("p",),
        (saver("a"), saver("b"), deleter("d", 1)),
    ),
    "no create-if-absent: save + delete + sweep": (
        {"create_if_absent": False},
        ("p",),
        (saver("a"), deleter("d", 1), sweeper("c", break_lease=True)),
    ),
    "no create-if-absent: retention": (
        {"create_if_absent": False},
        ("p",),
        (saver("a", times=2, last=1),),
    ),
    "parts: save + collect": ({"parts": True}, ("p",), (saver("a"), sweeper("c"))),
    "parts: save + break-lease": (
        {"parts": True},
        ("p",),
        (saver("a"), sweeper("c", break_lease=True)),
    ),
    "parts: copy + save + collect": (
        {"parts": True},
        (),
        (copier("k", 1), saver("a"), sweeper("c")),
    ),
    "parts: two saves, and one that died": (
        {"parts": True, "dead": True},
        ("p",),
        (saver("a", last=1), saver("b")),
    ),
}


def case(name: str) -> Case:
    how, saves, actors = HARD[name] if name in HARD else ({}, *CASES[name])
    losses = int(name in HARD and not {"parts", "create_if_absent"} & how.keys())
    return Case(actors=actors, world=prepared(*saves, **how), judge=judge, losses=losses)


@pytest.mark.parametrize("name", [*CASES, *HARD])
def test_no_schedule_breaks_the_protocol(
    name: str, seed: int, soak: bool, record_property: Callable[[str, object], None]
) -> None:
    found = explore(case(name), budget=BUDGET * (20 if soak else 1), seed=seed)

    record_property("schedules", found.schedules)
    record_property("complete", found.complete)
    assert found.problems == [], explained(found)
    assert found.complete or found.schedules >= BUDGET


def test_saves_reuse_what_others_wrote() -> None:
    """Otherwise no schedule above could take a file from a save that needs it."""
    world = prepared("p")()
    store = open_store(world.backend, sources(world.clock, 1))

    assert store.save(state("a")).reused_bytes >= W.nbytes


def test_a_listing_that_ages_while_it_is_read_does_not_count() -> None:
    """What went meanwhile may have handed its files on to a save that the listing lacks."""
    world = prepared("p")()
    backend = world.backend
    other = open_store(backend, sources(world.clock, 1))
    plain = backend.list

    class Late:
        """Between the first listing and the first read another process goes on."""

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def list(self, prefix: str) -> Any:
            found = plain(prefix)
            if len(other) == 1 and 1 in other:
                other.save(state("a"))
                other.delete(1)
            return found

    reused = {f.key for f in other[1].manifest.tables.files}
    assert reused <= leases.references(Late(), catalog.Memory()).files


def test_a_save_whose_lease_was_removed_does_not_say_that_it_is_done() -> None:
    """Where a tombstone stops nobody, who broke the lease may have freed its data (§8.9.2)."""
    backend = MemoryBackend()

    class Robbed:
        capabilities = dataclasses.replace(backend.capabilities, create_if_absent=False)

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def create(self, key: str, data: Any, *, durable: bool = True) -> None:
            backend.create(key, data, durable=durable)
            if key.startswith(layout.MANIFESTS):
                for lease in backend.list(layout.INTENTS):
                    backend.delete(lease)

    with pytest.raises(BackendError, match="its lease was removed before it was over"):
        ckptfmt.open(cast(Backend, Robbed()), threads=1).save(state("a"))

    assert len(open_store(backend, sources(Clock(), 1))) == 1  # nothing was removed


# ---- the same search finds what it is for


SAVE_VALIDATES: Final = " and catalog.scan(backend, memory).shows(base[0])"
SAVE_COMMITS: Final = "    commit(backend, key, data"
SURVEY_INTENTS: Final = "            intents = self.leases.all()\n"
SURVEY_LAST: Final = (
    "            final = references(self.backend, self.memory, since=first.view)\n"
)
RETIRE_BURIES: Final = "    buried = _bury("
RETIRE_LOOKS: Final = """    at.leases.retention(token, numbers)
    try:
        free = _unpinned(at, now, numbers, skip_pinned=skip_pinned)
"""

# What is broken: (where, function, code, what takes its place, the case that finds it).
MUTATIONS: Final[dict[str, tuple[Any, str, str, str, str]]] = {
    "base not validated again after the intent": (
        attempt,
        "begin",
        SAVE_VALIDATES,
        "",
        "save + delete of its base",
    ),
    "intent dropped before the commit": (
        attempt,
        "publish",
        SAVE_COMMITS,
        "    discard(backend, [layout.intent_key(own.save_id)])\n" + SAVE_COMMITS,
        "save + delete of its base",
    ),
    "manifest replaced instead of created": (
        commit,
        "commit",
        "backend.create(",
        "backend.replace(",
        "both retain",
    ),
    "number above the highest live one": (
        attempt,
        "begin",
        "max(before.top, request.above) + 1",
        "max((r.number for r in before.live()), default=0) + 1",
        "save + delete of its base",
    ),
    "retention reads intents after the manifests": (
        Upkeep,
        "survey",
        SURVEY_INTENTS + SURVEY_LAST,
        SURVEY_LAST + SURVEY_INTENTS,
        "save + delete of its base",
    ),
    "data deleted before the tombstone": (
        retire,
        "retire",
        RETIRE_BURIES,
        """    for key in sorted(_candidates(now, numbers)):
        at.backend.delete(key)
"""
        + RETIRE_BURIES,
        "save + delete of its base",
    ),
    "retention publishes its intent after it looked for pins": (
        retire,
        "_bury",
        RETIRE_LOOKS,
        """    try:
        free = _unpinned(at, now, numbers, skip_pinned=skip_pinned)
        at.leases.retention(token, numbers)
""",
        "pin + delete",
    ),
    "sweep lists intents last": (
        Upkeep,
        "survey",
        SURVEY_INTENTS + SURVEY_LAST,
        SURVEY_LAST + SURVEY_INTENTS,
        "save + collect",
    ),
    "sweep goes on beside a save in flight": (
        collect,
        "_sweep",
        "if blocked:",
        "if False:",
        "save + two sweeps",
    ),
    "lease broken without a tombstone": (
        collect,
        "_break_leases",
        "at.block(",
        "(lambda *args, **more: None)(",
        "save + break-lease",
    ),
    "lease of a deletion removed while a checkpoint it names lives": (
        leases.Leases,
        "spent",
        "return not any(view.lives(number) for number in intent.numbers)",
        "return True",
        "pin + delete + save + break-lease",
    ),
    "base validated by number, not by revision": (
        catalog.Catalog,
        "shows",
        """            and again.revision == row.revision
            and again.head == row.head
""",
        "",
        "slim + save",
    ),
    "revision without an intent": (
        revise,
        "revise",
        "at.leases.save(",
        "(lambda *args, **more: None)(",
        "slim + pin",
    ),
    "a pin is not checked against revisions": (
        Notes,
        "_leases",
        "or (intent.number == number and intent.revision)",
        "",
        "slim + pin",
    ),
    "data freed before the revision is there": (
        revise,
        "revise",
        "        sent = True\n",
        "        discard(at.backend, revision.freed)\n        sent = True\n",
        "slim + reader",
    ),
    "a pin is not checked against the leases": (
        Notes,
        "attach",
        "self._leases(number) if tagged else []",
        "[]",
        "pin + delete",
    ),
    "a lost reply is taken for a lost race": (
        commit,
        "commit",
        "    found = _read_back(",
        """    if isinstance(error, BackendError):
        raise ConflictError("another writer was faster", key=key)
    found = _read_back(""",
        "lost reply: two saves",
    ),
    "what a client meets is taken for another writer": (
        commit,
        "commit",
        "    found = _read_back(",
        """    if isinstance(error, ConflictError):
        raise error
    found = _read_back(""",
        "lost reply: two saves",
    ),
    "data removed though the manifest was sent": (
        save,
        "save",
        "if not own.sent:",
        "if True:",
        "late create + save",
    ),
    "spent leases removed where no create is refused": (
        leases.Leases,
        "spent",
        "if not self.backend.capabilities.create_if_absent:",
        "if False:",
        "no create-if-absent: two saves + delete",
    ),
    "leases broken where no create is refused": (
        collect,
        "_break_leases",
        "if not at.backend.capabilities.create_if_absent:",
        "if False:",
        "no create-if-absent: save + sweep",
    ),
    "uploads ended beside a save in flight": (
        collect,
        "_sweep",
        "todo, spent, begun = [], [], []",
        "todo, spent = [], []",
        "parts: save + collect",
    ),
    "uploads listed after the leases": (
        collect,
        "_sweep",
        "    found = at.survey()\n",
        "    found = at.survey()\n    begun = uploads.unfinished(at.backend)\n",
        "parts: save + collect",
    ),
    "retention ends uploads of others": (
        retire,
        "_free",
        "layout.data_save_id(key) in dead and",
        "",
        "parts: two saves, and one that died",
    ),
    "a tombstone that took a listed place is taken for damage": (
        catalog.Catalog,
        "_check_unreplaced",
        ".get(entry.key) != entry",
        " == 0",
        "pin + delete",
    ),
}


def mutate(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, code: str, other: str
) -> None:
    """Replace a piece of the source of a function."""
    function = getattr(owner, name)
    source = inspect.getsource(function)
    assert code in source, f"{name} was rewritten: bring this mutation up to date"
    source = "from __future__ import annotations\n" + textwrap.dedent(
        source.replace(code, other)
    )
    names: dict[str, Any] = {}
    exec(compile(source, f"<mutated {name}>", "exec"), function.__globals__, names)
    monkeypatch.setattr(owner, name, names[name])
    if owner is commit:  # imported by name
        monkeypatch.setattr(attempt, name, names[name])


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_broken_protocol_is_found_out(
    what: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    owner, name, code, other, where = MUTATIONS[what]
    mutate(monkeypatch, owner, name, code, other)

    found = explore(case(where), budget=MUTANT_BUDGET, seed=seed)

    record_property("schedules", found.schedules)
    assert found.problems != [], f"no violation in {found.schedules} schedules"
