"""A model of the commit, delete, slim, collect and pin protocol, explored exhaustively.

An actor is a generator that yields one atomic storage operation at a time and is sent its
result. What it will do next depends only on where it stands and on its locals, so a state of
the whole is (objects, where each actor stands, deaths left), and `explore` visits each of them
once, breadth first: the schedule it shows for a violation is a shortest one. A process that
sleeps for ever needs no move of its own: any schedule may leave it out.

Objects are a dict from key to value:

    ("manifest", number, revision)  ("checkpoint", id, save id, files)
                                    or ("tombstone", id, clock)
    ("data", name)                  1
    ("upload", name)                1: its parts, until it is completed or ended
    ("intent", save id)             ("save", number, revision, files)
                                    or ("retention", numbers, clock)
    ("pin", checkpoint id)          1
    ("sent", save id)               a create that is still on its way: (key, value)
    ("clock",)                      0, or 1 when the fence time has passed
    ("seen", ...)                   what only the invariants look at

`Rules` are the protocol; switching one off is a mutation. What the code does step by step, and
which function it is there, stands in spec/notes/016-model-and-code.md.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Objects: TypeAlias = dict[tuple[Any, ...], Any]
Manifests: TypeAlias = tuple[tuple[tuple[int, int], Any], ...]
Op: TypeAlias = tuple[Any, ...]
Actor: TypeAlias = Generator[Op, Any, Any]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The protocol; each field is one rule that can be broken."""

    create_if_absent: bool = True  # of the storage
    parts: bool = False  # of the storage: a data file is begun, then completed
    create_refuses: bool = True
    # a save
    number_above_all: bool = True
    intent: bool = True
    intent_until_commit: bool = True
    base_validated: bool = True
    base_validated_by_revision: bool = True
    read_back: bool = True
    leave_after_create: bool = True
    fence: bool = True
    # deleting
    tombstone: bool = True
    tombstone_names_its_checkpoint: bool = True
    free: str = "mim"  # the listings before data goes: manifests, intents, manifests
    bury_first: bool = True
    short_lives_seen: bool = True
    respect_intents: bool = True
    spent_removed: bool = True
    spent_below: bool = True
    spent_needs_create_if_absent: bool = True
    spent_retention_when_nothing_lives: bool = True
    deletion_fence: bool = True
    # collecting
    sweep: str = "mdim"
    sweep_stops: bool = True
    break_with_tombstone: bool = True
    break_needs_create_if_absent: bool = True
    break_old_retentions_only: bool = True
    uploads_before_intents: bool = True
    ends_dead_uploads_only: bool = True
    tombstone_fence: bool = True
    tombstone_below_newest: bool = True
    # revisions
    dead_numbers_stay_dead: bool = True
    only_highest_counts: bool = True
    revision_intent: bool = True
    revision_above_all: bool = True
    break_exact_name: bool = True
    # pins
    retention_intent: bool = True
    retention_intent_first: bool = True
    retention_intent_until_buried: bool = True
    revision_looks_at_pins: bool = True
    pin_first: bool = True
    pin_looks_at_intents: bool = True
    pin_looks_at_revisions: bool = True
    pin_looks_again: bool = True


PROTOCOL: Final = Rules()


# ---- what a listing means (format and `_engine.catalog`, `_engine.leases`)


def living(manifests: Manifests, rules: Rules) -> dict[int, tuple[int, Any]]:
    """Return (revision, checkpoint) of each number that lives: 000 is there, no tombstone."""
    found: dict[int, tuple[int, Any]] = {}
    by_name = dict(manifests)
    for (number, revision), value in manifests:
        first = by_name.get((number, 0))
        dead = first is None or first[0] == "tombstone"
        if value[0] == "checkpoint" and not (dead and rules.dead_numbers_stay_dead):
            found[number] = max(found.get(number, (-1, ())), (revision, value))
    return found


def references(manifests: Manifests, rules: Rules) -> frozenset[str]:
    if not rules.only_highest_counts:
        values = [value for _, value in manifests if value[0] == "checkpoint"]
    else:
        values = [value for _, value in living(manifests, rules).values()]
    return frozenset(file for value in values for file in value[3])


def spent(intent: Any, manifests: Manifests, rules: Rules) -> bool:
    if not rules.create_if_absent and rules.spent_needs_create_if_absent:
        return False
    if intent[0] == "retention":
        alive = living(manifests, rules).keys() & set(intent[1])
        return not alive or not rules.spent_retention_when_nothing_lives
    names = [name for name, _ in manifests]
    _, number, revision, _ = intent
    if (number, revision) in names:
        return True
    if not rules.spent_below:
        return False
    if revision:
        return number not in living(manifests, rules)
    return any(n > number for n, _ in names)


def landed(save: str, intent: Any, manifests: Manifests) -> bool:
    if intent[0] != "save":
        return False
    value = dict(manifests).get(intent[1:3])
    return value is not None and value[0] == "checkpoint" and value[2] == save


def covered(intents: Any, manifests: Manifests, rules: Rules) -> frozenset[str]:
    """Return the files of saves in flight: what they write, and what they may reference."""
    if not rules.respect_intents:
        return frozenset()
    alive = [(s, i) for s, i in intents if i[0] == "save" and not spent(i, manifests, rules)]
    return frozenset(file for save, intent in alive for file in (save, *intent[3]))


# ---- storage: one function an operation, atomic


def _named(objects: Objects, kind: str) -> tuple[Any, ...]:
    return tuple(sorted((k[1], v) for k, v in objects.items() if k[0] == kind))


def _manifests(objects: Objects) -> tuple[int, Manifests]:
    rows = sorted((k[1:], v) for k, v in objects.items() if k[0] == "manifest")
    return objects["clock",], tuple(rows)


def _create(objects: Objects, rules: Rules, key: tuple[Any, ...], value: Any) -> bool:
    if key in objects and rules.create_if_absent and rules.create_refuses:
        return False
    objects[key] = value
    if value[0] == "checkpoint" and key[2] == 0:
        objects["seen", "landed", key[1], value[1]] = 1
    elif value[0] == "checkpoint" and ("seen", "pinned", value[1]) in objects:
        objects["seen", "slimmed though pinned", value[1]] = 1
    return True


def perform(objects: Objects, op: Op, rules: Rules) -> Any:
    """Run one operation on the objects and return its result."""
    match op:
        case ("manifests",):
            return _manifests(objects)
        case ("intents",) | ("pins",) | ("datas",) | ("uploads",):
            return _named(objects, op[0][:-1])
        case ("complete", name):
            if objects.pop(("upload", name), None) is None:
                return False
            objects["data", name] = 1
            return True
        case ("end", name):
            intent = objects.get(("intent", name))
            alive = intent and not spent(intent, _manifests(objects)[1], PROTOCOL)
            if objects.pop(("upload", name), None) is not None and alive:
                objects["seen", "robbed", name] = 1
        case ("read", key):
            return objects.get(key)
        case ("put", key, value):
            objects[key] = value
        case ("delete", key):
            objects.pop(key, None)
        case ("create", key, value, began):
            if began is not None and rules.fence and objects["clock",] != began:
                return "fenced"
            return _create(objects, rules, key, value)
        case ("send", key, value):
            objects["sent", value[2]] = key, value
        case ("deliver",):
            for sent in [k for k in objects if k[0] == "sent"]:
                _create(objects, rules, *objects.pop(sent))
        case ("fence passes",):
            objects["clock",] = 1
        case ("bury", number, began):
            if rules.deletion_fence and objects["clock",] != began:
                return "fenced"
            _bury(objects, rules, number)
    return None


def _bury(objects: Objects, rules: Rules, number: int) -> None:
    old = objects.get(("manifest", number, 0))
    if old is not None and old[0] == "checkpoint":
        objects["seen", "deleted", old[1]] = 1
    if not rules.tombstone:
        for key in [k for k in objects if k[:2] == ("manifest", number)]:
            del objects[key]
    else:
        id_ = old[1] if old is not None and rules.tombstone_names_its_checkpoint else ""
        objects["manifest", number, 0] = "tombstone", id_, objects["clock",]


# ---- actors


def save(rules: Rules, me: str, *, delayed: bool = False) -> Actor:
    """`_engine.attempt`, `_engine.save`: one save; with `delayed` the reply is lost."""
    began, listed = yield ("manifests",)
    alive = living(listed, rules)
    taken = [name[0] for name, _ in listed] if rules.number_above_all else list(alive)
    number = max(taken, default=0) + 1
    base = max(alive, default=None)
    row = None if base is None else alive[base]
    reuse = () if row is None else row[1][3]
    del listed, alive, taken
    if rules.intent:
        yield ("put", ("intent", me), ("save", number, 0, reuse))
    if row is not None and rules.base_validated:
        again = living((yield ("manifests",))[1], rules).get(base)
        by = slice(None) if rules.base_validated_by_revision else slice(1, 1)
        if again is None or again[1][1] != row[1][1] or again[by] != row[by]:
            reuse = ()
        del again, by
    if rules.parts:
        yield ("put", ("upload", me), 1)
        if not (yield ("complete", me)):
            yield ("delete", ("intent", me))
            return "not saved"
    else:
        yield ("put", ("data", me), 1)
    key, value = ("manifest", number, 0), ("checkpoint", "c" + me, me, tuple({*reuse, me}))
    value = (*value[:3], tuple(sorted(value[3])))
    del base, row, reuse
    if not rules.intent_until_commit:
        yield ("delete", ("intent", me))
    if delayed:
        yield ("send", key, value)
        answer: Any = None
    else:
        answer = yield ("create", key, value, began)
    if answer == "fenced":
        yield ("delete", ("data", me))
        yield ("delete", ("intent", me))
        return "fenced"
    found = (yield ("read", key)) if rules.read_back else (value if answer else None)
    if found is not None and found[:2] == ("tombstone", value[1]):
        found = value  # committed, then deleted by somebody
    if found == value:
        yield ("put", ("seen", "acknowledged", number, value[1]), 1)
        yield ("delete", ("intent", me))
        return "saved"
    if not rules.leave_after_create:
        yield ("delete", ("data", me))
        yield ("delete", ("intent", me))
    if found is not None or not rules.read_back:
        yield ("put", ("seen", "refused", value[1]), 1)
    return "not saved"


def retire(
    rules: Rules, me: str, delete: tuple[int, ...] = (), slim: tuple[tuple[int, str], ...] = ()
) -> Actor:
    """`_engine.retire`: delete numbers, drop a file of others, free what nobody needs."""
    began, listed = yield ("manifests",)
    alive = living(listed, rules)
    delete = tuple(n for n in delete if n in alive)
    rows = {n: alive[n] for n in delete}
    plans = tuple(
        (n, file, alive[n], _next(listed, n, rules)) for n, file in slim if n in alive
    )
    candidates = {f for row in rows.values() for f in row[1][3]} | {
        file for _, file, _, _ in plans
    }
    del listed, alive
    for name in () if rules.bury_first else sorted(candidates):
        yield ("delete", ("data", name))
    if delete:
        yield from _tombstones(rules, me, began, rows)
    del rows
    for nth, (number, file, row, revision) in enumerate(plans):
        yield from _revise(rules, f"{me}{nth}", began, number, file, row, revision)
    yield from _free(rules, candidates)


def _next(listed: Manifests, number: int, rules: Rules) -> int:
    """Return the revision to aim at."""
    names = [r for (n, r), _ in listed if n == number]
    return (max(names) if rules.revision_above_all else living(listed, rules)[number][0]) + 1


def _tombstones(rules: Rules, me: str, began: int, rows: Mapping[int, Any]) -> Actor:
    """`_engine.retire._bury`."""
    announce = ("put", ("intent", me), ("retention", tuple(sorted(rows)), began))
    if rules.retention_intent and rules.retention_intent_first:
        yield announce
    pins = dict((yield ("pins",)))
    if rules.retention_intent and not rules.retention_intent_first:
        yield announce
    free = tuple(n for n in sorted(rows) if rows[n][1][1] not in pins)
    del pins
    if not rules.retention_intent_until_buried:
        yield ("delete", ("intent", me))
    for number in free:
        if (yield ("bury", number, began)) == "fenced":
            break
    yield ("delete", ("intent", me))


def _revise(
    rules: Rules, me: str, began: int, number: int, file: str, row: Any, revision: int
) -> Actor:
    """`_engine.revise`: a revision without one file."""
    id_, files = row[1][1], tuple(f for f in row[1][3] if f != file)
    if rules.revision_intent:
        yield ("put", ("intent", me), ("save", number, revision, files))
    pinned = rules.revision_looks_at_pins and id_ in dict((yield ("pins",)))
    again = None if pinned else living((yield ("manifests",))[1], rules).get(number)
    if again != row:
        yield ("delete", ("intent", me))
        return
    key, value = ("manifest", number, revision), ("checkpoint", id_, me, files)
    del again, pinned
    yield ("create", key, value, began)
    if (yield ("read", key)) == value:  # else the name is taken and the intent spent
        yield ("delete", ("intent", me))


def _survey(rules: Rules, order: str) -> Actor:
    """`_engine.upkeep.Upkeep.survey`: what is referenced, in flight, and there."""
    while True:
        refs: set[str] = set()
        data: tuple[Any, ...] = ()
        intents: tuple[Any, ...] = ()
        first: tuple[int, Manifests] | None = None
        for what in order:
            if what == "m":
                now, listed = yield ("manifests",)
                refs |= references(listed, rules)
                first = first or (now, listed)
            elif what == "d":
                data = yield ("datas",)
            else:
                intents = yield ("intents",)
        assert first is not None
        known = {name for name, _ in first[1]}
        new = [(name, value) for name, value in listed if name not in known]
        short = any(name[1] == 0 and value[0] == "tombstone" for name, value in new)
        if not rules.short_lives_seen:
            return refs, listed, data, intents
        if not short and first[0] == now:
            refs |= {f for _, value in new if value[0] == "checkpoint" for f in value[3]}
            return refs, listed, data, intents


def _free(rules: Rules, candidates: set[str]) -> Actor:
    """`_engine.retire._free`."""
    refs, listed, _, intents = yield from _survey(rules, rules.free)
    gone = [s for s, i in intents if rules.spent_removed and spent(i, listed, rules)]
    dead = {s for s, i in intents if s in gone and not landed(s, i, listed)}
    todo = sorted((candidates | dead) - refs - covered(intents, listed, rules))
    only = dead if rules.ends_dead_uploads_only else None
    del refs, listed, intents, dead, candidates
    for name in todo:
        yield ("delete", ("data", name))
    if rules.parts and only != set():
        yield from _end(only)
    for name in gone:
        yield ("delete", ("intent", name))


def _end(only: set[str] | None) -> Actor:
    """`_engine.uploads.end`."""
    for name, _ in (yield ("uploads",)):
        if only is None or name in only:
            yield ("end", name)


def collect(rules: Rules, me: str, *, breaks: bool = False) -> Actor:
    """`_engine.collect`: leases broken, data swept, old tombstones removed."""
    if breaks and (rules.create_if_absent or not rules.break_needs_create_if_absent):
        yield from _break(rules)
    yield from _sweep(rules)
    now, listed = yield ("manifests",)
    top = max(living(listed, rules), default=0)
    old = [
        name[0]
        for name, value in listed
        if value[0] == "tombstone"
        and name[1] == 0
        and (value[2] < now or not rules.tombstone_fence)
        and (name[0] < top or not rules.tombstone_below_newest)
    ]
    present = {name for name, _ in listed}
    rest = [n for n in sorted(present) if n[1] and (n[0] in old or (n[0], 0) not in present)]
    first = [(number, 0) for number in old]
    del now, listed, top, present, old
    for name in rest + first:
        yield ("delete", ("manifest", *name))


def _break(rules: Rules) -> Actor:
    intents = yield ("intents",)
    now, listed = yield ("manifests",)
    for name, intent in intents:
        if spent(intent, listed, rules):
            continue
        if intent[0] == "save":
            revision = intent[2] if rules.break_exact_name else 0
            if rules.break_with_tombstone:
                grave = ("tombstone", "", now)
                yield ("create", ("manifest", intent[1], revision), grave, None)
            yield ("delete", ("intent", name))
        elif intent[2] < now or not rules.break_old_retentions_only:
            yield ("delete", ("intent", name))


def _sweep(rules: Rules) -> Actor:
    begun: Any = ()
    if rules.parts and rules.uploads_before_intents:
        begun = yield ("uploads",)
    refs, listed, data, intents = yield from _survey(rules, rules.sweep)
    if rules.parts and not rules.uploads_before_intents:
        begun = yield ("uploads",)
    gone = [s for s, i in intents if spent(i, listed, rules)]
    alive = [s for s, i in intents if i[0] == "save" and s not in gone]
    if alive and rules.sweep_stops:
        return
    todo = [name for name, _ in data if name not in refs and name not in alive]
    ends = [name for name, _ in begun if name not in refs]
    del refs, listed, data, intents, alive, begun
    for name in todo:
        yield ("delete", ("data", name))
    for name in ends:
        yield ("end", name)
    for name in gone:
        yield ("delete", ("intent", name))


def pin(rules: Rules, number: int) -> Actor:
    """`_engine.notes.Notes.attach`: protect a checkpoint from deletion and slimming."""
    found = living((yield ("manifests",))[1], rules).get(number)
    if found is None:
        return
    id_ = found[1][1]
    del found
    if rules.pin_first:
        yield ("put", ("pin", id_), 1)
    intents = yield ("intents",)
    listed = (yield ("manifests",))[1] if rules.pin_looks_again else None
    if not rules.pin_first:
        yield ("put", ("pin", id_), 1)
    for _, intent in intents if rules.pin_looks_at_intents else ():
        if intent[0] == "retention" and number in intent[1]:
            return
        revises = intent[0] == "save" and intent[1] == number and intent[2]
        absent = listed is not None and intent[1:3] not in dict(listed)
        if revises and absent and rules.pin_looks_at_revisions:
            return
    if listed is not None and number not in living(listed, rules):
        return
    del intents, listed
    yield ("put", ("seen", "pinned", id_), 1)


def life(rules: Rules, me: str, *, slim: bool = False) -> Actor:
    """A save whose checkpoint is deleted at once, or loses what it wrote."""
    listed = (yield ("manifests",))[1]
    number = max(name[0] for name, _ in listed) + 1
    del listed
    if (yield from save(rules, me)) == "saved":
        yield from retire(rules, me + "3", *([(), ((number, me),)] if slim else [(number,)]))


def job(rules: Rules, me: str) -> Actor:
    """A restarted job: it saves twice and deletes the first of the two."""
    listed = (yield ("manifests",))[1]
    number = max(name[0] for name, _ in listed) + 1
    del listed
    if (yield from save(rules, me)) == "saved":
        yield from save(rules, me + "2")
        yield from retire(rules, me + "3", (number,))


def time(_: Rules) -> Actor:
    """The fence time passes."""
    yield ("fence passes",)


def network(_: Rules) -> Actor:
    """What was sent arrives at last."""
    yield ("deliver",)


# ---- what must hold


def violations(objects: Objects, rules: Rules) -> Iterator[str]:
    """Yield what is wrong with a state of the storage."""
    alive = living(_manifests(objects)[1], PROTOCOL)
    for key in objects:
        if key[:2] == ("seen", "robbed"):
            yield f"the upload of {key[2]} was ended, which is in flight"
    for number, (_, value) in alive.items():
        lost = sorted(f for f in value[3] if ("data", f) not in objects)
        if lost:
            yield f"checkpoint {number} lost its data {lost}"
        if ("seen", "deleted", value[1]) in objects and rules.create_if_absent:
            yield f"checkpoint {number} rose again"
    if not rules.create_if_absent:
        return  # one writer at a time: only what stands there must be whole
    denoted: dict[int, str] = {}
    for key in objects:
        match key:
            case ("seen", "acknowledged", number, id_):
                if ("seen", "deleted", id_) not in objects and (
                    number not in alive or alive[number][1][1] != id_
                ):
                    yield f"acknowledged checkpoint {number} is lost"
            case ("seen", "landed", number, id_):
                if denoted.setdefault(number, id_) != id_:
                    yield f"number {number} denotes two checkpoints"
                if ("seen", "refused", id_) in objects:
                    yield f"{id_} landed and was refused"
            case ("seen", "pinned", id_):
                if ("seen", "deleted", id_) in objects:
                    yield f"{id_} was deleted though pinned"
            case ("seen", "slimmed though pinned", id_):
                yield f"{id_} was slimmed though pinned"


def left_over(objects: Objects, rules: Rules) -> list[str]:
    """Go on as a restarted job would; return what is wrong then, and what is left over."""
    found: list[str] = []
    if _alone(objects, save(rules, "z"), rules, found) != "saved":
        found.append("a fresh save does not land")
    _alone(objects, retire(rules, "y"), rules, found)
    listed = _manifests(objects)[1]
    strict = dataclasses.replace(PROTOCOL, create_if_absent=rules.create_if_absent)
    for name, intent in _named(objects, "intent"):
        if spent(intent, listed, strict):
            found.append(f"spent intent {name} stays after a restart")
    for number, (_, value) in living(listed, PROTOCOL).items():
        if len(value[3]) > 1 and rules.create_if_absent and ("pin", value[1]) not in objects:
            act = retire(rules, "v", slim=((number, value[3][-1]),))
            _alone(objects, act, rules, found)
            if living(_manifests(objects)[1], PROTOCOL)[number][1] == value:
                found.append(f"{number} cannot be slimmed any more")
    for act in (
        lambda: time(rules),
        lambda: collect(rules, "x", breaks=True),
        lambda: collect(rules, "w", breaks=True),
    ):
        _alone(objects, act(), rules, found)
    needed = references(_manifests(objects)[1], PROTOCOL)
    if rules.create_if_absent:
        found += [f"data {n} stays" for n, _ in _named(objects, "data") if n not in needed]
        found += [f"parts of {n} stay" for n, _ in _named(objects, "upload")]
        young = "retention", 1  # only time can tell that its owner is dead
        found += [
            f"intent {name} stays"
            for name, intent in _named(objects, "intent")
            if (intent[0], intent[2]) != young
        ]
    return found


def _alone(objects: Objects, actor: Actor, rules: Rules, found: list[str]) -> Any:
    try:
        op = actor.send(None)
        while True:
            result = perform(objects, op, rules)
            found += violations(objects, rules)
            op = actor.send(result)
    except StopIteration as over:
        return over.value


# ---- exploration


@dataclass(frozen=True, kw_only=True)
class Case:
    """Processes over prepared objects."""

    actors: tuple[Callable[[Rules], Actor], ...]
    objects: Objects
    immortal: frozenset[int] = frozenset()  # actors that are no process
    create_if_absent: bool = True
    parts: bool = False


@dataclass(kw_only=True)
class Found:
    """What an exploration saw."""

    states: int = 0
    problem: str = ""
    schedule: tuple[str, ...] = ()


class _Places:
    """Where an actor can stand: the same place, whichever results led there."""

    def __init__(self, rules: Rules, actors: tuple[Callable[[Rules], Actor], ...]) -> None:
        self._rules, self._actors = rules, actors
        self._known: dict[Any, int] = {}
        self._steps: dict[tuple[int, Any], int] = {}
        self.results: list[tuple[int, tuple[Any, ...]]] = []  # place → (actor, results so far)
        self.ops: list[Op | None] = []  # place → its next operation; None at the end

    def enter(self, actor: int, results: tuple[Any, ...]) -> int:
        own = self._actors[actor](self._rules)
        place: Any = [actor]
        op: Op | None = None
        try:
            op = own.send(None)
            for result in results:
                op = own.send(result)
            inner: Any = own
            while inner is not None:  # the actor, and the part of it that it is in
                frame = inner.gi_frame
                values = {k: _plain(v) for k, v in frame.f_locals.items() if k != "rules"}
                place.append((frame.f_lasti, inner.__name__, repr(sorted(values.items()))))
                inner = inner.gi_yieldfrom
        except StopIteration:
            place, op = [actor, "over"], None
        key = tuple(place)
        if key not in self._known:
            self._known[key] = len(self.ops)
            self.results.append((actor, results))
            self.ops.append(op)
        return self._known[key]

    def step(self, place: int, result: Any) -> int:
        if (place, result) not in self._steps:
            actor, results = self.results[place]
            self._steps[place, result] = self.enter(actor, (*results, result))
        return self._steps[place, result]


def _plain(value: Any) -> Any:
    """Return a local variable in a form whose text does not depend on how it was built."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Generator | Callable):  # type: ignore[arg-type]
        return ""
    return value


def explore(case: Case, rules: Rules = PROTOCOL, *, deaths: int = 1) -> Found:
    """Visit every state that the case can come to; stop at the first violation."""
    rules = dataclasses.replace(rules, create_if_absent=case.create_if_absent, parts=case.parts)
    places = _Places(rules, case.actors)
    begin = tuple(places.enter(n, ()) for n in range(len(case.actors)))
    start = frozenset(case.objects.items()), begin, deaths
    seen: dict[Any, Any] = {start: None}
    todo, ends = deque([start]), set()

    def stop(state: Any, problem: str) -> Found:
        steps: list[str] = []
        while seen[state] is not None:
            state, step = seen[state]
            steps.insert(0, step)
        return Found(states=len(seen), problem=problem, schedule=tuple(steps))

    while todo:
        state = todo.popleft()
        objects, standing, _ = state
        moves = list(_moves(case, places, state, rules))
        for following, step in moves:
            if following in seen:
                continue
            seen[following] = state, step
            todo.append(following)
            if following[0] != objects:
                for problem in violations(dict(following[0]), rules):
                    return stop(following, problem)
        running = any(place >= 0 and places.ops[place] for place in standing)
        if not running and objects not in ends:
            ends.add(objects)
            for problem in left_over(dict(objects), rules):
                return stop(state, f"afterwards: {problem}")
    return Found(states=len(seen))


def _moves(case: Case, places: _Places, state: Any, rules: Rules) -> Iterator[tuple[Any, str]]:
    objects, standing, left = state
    for actor, place in enumerate(standing):
        op = places.ops[place] if place >= 0 else None
        if op is None:
            continue
        after = dict(objects)
        result = perform(after, op, rules)
        moved = (*standing[:actor], places.step(place, result), *standing[actor + 1 :])
        yield (frozenset(after.items()), moved, left), f"{'ABCD'[actor]} {op[0]} {op[1:]}"
        if left and actor not in case.immortal and places.results[place][1]:
            dead = (*standing[:actor], -1, *standing[actor + 1 :])
            yield (objects, dead, left - 1), f"{'ABCD'[actor]} dies"


# ---- cases


def store(*checkpoints: tuple[int, str, str], data: str = "") -> Objects:
    """Return objects: (number, save, files) of checkpoints, one letter a file; further data."""
    objects: Objects = {("clock",): 0}
    for number, name, files in checkpoints:
        value = "checkpoint", "c" + name, name, tuple(files)
        objects["manifest", number, 0] = value
        objects["seen", "landed", number, "c" + name] = 1
        objects["seen", "acknowledged", number, "c" + name] = 1
        objects |= {("data", file): 1 for file in files}
    return objects | {("data", file): 1 for file in data}


def saves(me: str, **how: Any) -> Callable[[Rules], Actor]:
    return lambda rules: save(rules, me, **how)


def retires(me: str, *delete: int, slim: tuple[tuple[int, str], ...] = ()) -> Any:
    return lambda rules: retire(rules, me, delete, slim)


def collects(*, breaks: bool = False) -> Callable[[Rules], Actor]:
    return lambda rules: collect(rules, "s", breaks=breaks)


def pins(number: int) -> Callable[[Rules], Actor]:
    return lambda rules: pin(rules, number)


ONE: Final = store((1, "p", "p"), data="j")
TWO: Final = store((1, "p", "pq"), (2, "r", "pr"))  # p is shared
WIDE: Final = store((1, "p", "pq"))
APART: Final = store((1, "p", "pq"), (2, "r", "r"))


def case(objects: Objects, *actors: Any, **how: Any) -> Case:
    return Case(actors=actors, objects=objects, **how)


SMALL: Final[dict[str, Case]] = {
    "two saves": case(ONE, saves("a"), saves("b")),
    "save + delete of its base": case(ONE, saves("a"), retires("D", 1)),
    "save + delete of what it saves": case(ONE, saves("a"), retires("D", 2)),
    "save + cleaning up": case(ONE, saves("a"), retires("D")),
    "save + sweep": case(ONE, saves("a"), collects()),
    "save + break-lease": case(ONE, saves("a"), collects(breaks=True)),
    "lost reply": case(ONE, saves("a", delayed=True), network, immortal=frozenset({1})),
    "lost reply + save": case(
        ONE, saves("a", delayed=True), network, saves("b"), immortal=frozenset({1})
    ),
    "pin + delete": case(TWO, pins(1), retires("D", 1)),
    "slim + save": case(WIDE, retires("S", slim=((1, "q"),)), saves("a")),
    "slim + delete": case(TWO, retires("S", slim=((1, "q"),)), retires("D", 1)),
    "slim + slim": case(WIDE, retires("S", slim=((1, "q"),)), retires("T", slim=((1, "p"),))),
    "slim + pin": case(WIDE, retires("S", slim=((1, "q"),)), pins(1)),
    "slim + sweep": case(WIDE, retires("S", slim=((1, "q"),)), collects()),
    "slim + break-lease": case(WIDE, retires("S", slim=((1, "q"),)), collects(breaks=True)),
    "delete and slim + save": case(TWO, retires("S", 1, slim=((2, "r"),)), saves("a")),
    "pin + delete + cleaning up": case(TWO, pins(1), retires("D", 1), retires("E")),
    "parts: save + cleaning up": case(ONE, saves("a"), retires("D"), parts=True),
    "parts: save + sweep": case(ONE, saves("a"), collects(), parts=True),
    "parts: save + break-lease": case(ONE, saves("a"), collects(breaks=True), parts=True),
    "parts: two saves": case(ONE, saves("a"), saves("b"), parts=True),
    "no create-if-absent: save + delete": case(
        ONE, saves("a"), retires("D", 1), create_if_absent=False
    ),
    "no create-if-absent: save + sweep": case(
        ONE, saves("a"), collects(breaks=True), create_if_absent=False
    ),
    "no create-if-absent: slim + delete": case(
        TWO, retires("S", slim=((1, "q"),)), retires("D", 1), create_if_absent=False
    ),
}
LARGE: Final[dict[str, Case]] = {
    "two saves + cleaning up": case(ONE, saves("a"), saves("b"), retires("D", 1)),
    "save + delete + sweep": case(ONE, saves("a"), retires("D", 1), collects()),
    "save + two deletes that share a file": case(
        TWO, saves("a"), retires("D", 1), retires("E", 2)
    ),
    "two saves + break-lease": case(ONE, saves("a"), saves("b"), collects(breaks=True)),
    "save + two sweeps": case(ONE, saves("a"), collects(), collects(breaks=True)),
    "sleeping save, fence passes, collect": case(
        ONE, saves("a"), saves("b"), time, collects(), immortal=frozenset({2})
    ),
    "delete of the newest, fence passes, collect": case(
        TWO, saves("a"), retires("D", 2), time, collects(), immortal=frozenset({2})
    ),
    "pin + sleeping delete, fence passes, break-lease": case(
        TWO, pins(1), retires("D", 1), time, collects(breaks=True), immortal=frozenset({2})
    ),
    "sleeping save, restarted job, fence passes, collect": case(
        ONE,
        saves("a"),
        lambda rules: job(rules, "b"),
        time,
        collects(),
        immortal=frozenset({1, 2, 3}),
    ),
    "save + short life + sweep": case(
        ONE, saves("a"), lambda rules: life(rules, "b"), collects(), immortal=frozenset({1})
    ),
    "save + short life + delete": case(
        ONE,
        saves("a"),
        lambda rules: life(rules, "b"),
        retires("D", 1),
        immortal=frozenset({1}),
    ),
    "save + slimmed at once + sweep": case(
        ONE,
        saves("a"),
        lambda rules: life(rules, "b", slim=True),
        collects(),
        immortal=frozenset({1}),
    ),
    "slim + delete + pin": case(
        APART, retires("S", slim=((1, "q"),)), retires("D", 1), pins(1)
    ),
    "slim + break-lease + pin": case(
        WIDE, retires("S", slim=((1, "q"),)), collects(breaks=True), pins(1)
    ),
    "slim + save + delete": case(
        TWO, retires("S", slim=((1, "q"),)), saves("a"), retires("D", 1)
    ),
    "slim + delete of another + save": case(
        TWO, retires("S", slim=((1, "p"),)), saves("a"), retires("D", 2)
    ),
    "slim, delete, fence passes, collect": case(
        TWO,
        retires("S", slim=((1, "q"),)),
        retires("D", 1),
        time,
        collects(),
        immortal=frozenset({2}),
    ),
    "parts: two saves + cleaning up": case(
        ONE, saves("a"), saves("b"), retires("D"), parts=True
    ),
    "no create-if-absent: two saves + delete": case(
        ONE, saves("a"), saves("b"), retires("D", 1), create_if_absent=False
    ),
    "no create-if-absent: save + delete + sweep": case(
        ONE, saves("a"), retires("D", 1), collects(breaks=True), create_if_absent=False
    ),
}
