"""Loss of power at every point of what the local backend does, and whether each sync is needed.

The recorded calls are those of the real backend on a real disk; the states are those that POSIX
allows, not only those that one file system shows.
"""

from __future__ import annotations

import ast
import collections
import inspect
import pathlib
import random
import typing
from collections.abc import Callable

import pytest

from ckptfmt.backends import LocalBackend, _names, _syscalls, _write, local
from ckptfmt.errors import NotFoundError
from ckptfmt.testing.powerloss import CrashState, Model, PowerLog, crash_states, record

MODELS = typing.get_args(Model)
Promise = tuple[str, str, bytes | None]  # key, "begin …" or "done …", bytes


def run(log: PowerLog, backend: LocalBackend) -> None:
    """One of each, first and repeated; each key is promised when its call returns."""

    def step(what: str, key: str, data: bytes | None, change: Callable[[], None]) -> None:
        log.mark((key, f"begin {what}", data))
        change()
        log.mark((key, "done", data))

    one, two, three = b"one" * 50, b"two" * 40, b"three" * 30
    blocks = [bytes([n]) * 700 for n in range(8)]
    whole = b"".join(blocks)
    write, create, replace = backend.write, backend.create, backend.replace

    def publish(key: str, overwrite: bool) -> None:
        backend.publish(key, blocks, nbytes=len(whole), overwrite=overwrite)

    step("write", "data/1", whole, lambda: write("data/1", blocks, nbytes=len(whole)))
    step("create", "manifests/1", one, lambda: create("manifests/1", one))
    backend.create("intents/1", b"not durable, nothing promised", durable=False)
    step("write", "data/2", whole, lambda: write("data/2", iter(blocks), nbytes=len(whole)))
    step("create", "manifests/2", two, lambda: create("manifests/2", two))
    step("replace", "manifests/1", three, lambda: replace("manifests/1", three))
    backend.delete("intents/1")
    step("delete", "data/1", None, lambda: backend.delete("data/1"))
    step("create", "deep/er/3", one, lambda: create("deep/er/3", one))
    step("create", "bundle", whole, lambda: publish("bundle", False))
    step("replace", "manifests/2", whole, lambda: publish("manifests/2", True))


def violations(log: PowerLog, model: Model) -> collections.Counter[str]:
    """Return how often each broken promise was found in the states of a log."""
    found: collections.Counter[str] = collections.Counter()
    for crash in crash_states(log, model=model, rng=random.Random(1)):
        found["states"] += 1
        for key, allowed in promises(crash).items():
            now = crash.files.get(f"run/{key}")
            if allowed is not None and now not in allowed:
                found["lost" if now is None else "wrong"] += 1
    return found


def promises(crash: CrashState) -> dict[str, set[bytes | None] | None]:
    """Return what each key may hold (None: absent); None instead of a set is anything."""
    allowed: dict[str, set[bytes | None] | None] = {}
    for key, event, data in typing.cast("tuple[Promise, ...]", crash.marks):
        old = allowed.get(key, {None})
        match event:
            case "begin write":  # unique names: a part does no harm
                allowed[key] = None
            case "begin create" | "begin replace" | "begin delete":
                assert old is not None
                allowed[key] = old | {data}
            case "done":
                # A delete is not durable: the object may be back.
                allowed[key] = {data} if data is not None else old
    return allowed


@pytest.fixture(params=["cached", "direct"])
def log(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> PowerLog:
    return recorded(tmp_path, direct_nbytes=1 if request.param == "direct" else 1 << 40)


def recorded(folder: pathlib.Path, direct_nbytes: int = 1 << 40) -> PowerLog:
    with record(folder) as log:
        run(log, LocalBackend(folder / "run", direct_nbytes=direct_nbytes))
    return log


@pytest.mark.parametrize("model", MODELS)
def test_every_promise_survives_a_loss_of_power(log: PowerLog, model: Model) -> None:
    found = violations(log, model)

    assert found["states"] > 100
    assert set(found) == {"states"}, found


def test_every_sync_is_needed(tmp_path: pathlib.Path) -> None:
    """The mutation table: the same run without one of its syncs breaks a promise."""
    log = recorded(tmp_path)
    syncs = [n for n, op in enumerate(log.ops) if op.kind.startswith("sync") and n >= log.start]
    table = {n: violations(log.without(n), "weak") for n in syncs}

    kinds = collections.Counter(log.ops[n].kind for n in syncs)
    # Files: 2 data, 3 created, 1 replaced, 2 published. Folders: their own, 5 that got a new
    # folder.
    assert kinds == {"sync": 8, "sync folder": 8 + 5}
    for n, found in table.items():
        op = log.ops[n]
        assert found["lost"] + found["wrong"], f"{op.kind} {op.path!r} (operation {n}) is idle"
        if op.kind == "sync":
            assert found["wrong"], f"without the sync of file {op.file} nothing is torn"
            assert violations(log.without(n), "ordered")["wrong"]


def test_creating_in_place_can_be_torn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the temporary file: the last resort without links is seen to tear."""

    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "no hard links here")

    with record(tmp_path) as log:
        monkeypatch.setattr(_syscalls, "link", refuse)
        monkeypatch.setattr(_syscalls, "rename_new", refuse)
        run(log, LocalBackend(tmp_path / "run"))

    found = violations(log, "ordered")
    assert found["wrong"]
    assert not found["lost"]


def test_an_exclusive_rename_is_as_good_as_a_link(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "no hard links here")

    with record(tmp_path) as log:
        monkeypatch.setattr(_syscalls, "link", refuse)
        run(log, LocalBackend(tmp_path / "run"))

    assert sum(op.kind == "rename" for op in log.ops) == 7
    assert all(set(violations(log, model)) == {"states"} for model in MODELS)


def test_a_folder_made_by_somebody_else_is_synced(tmp_path: pathlib.Path) -> None:
    """It may not be on the disk yet: its maker can have died before its own sync."""
    for name in ("manifests", "data"):
        (tmp_path / "run" / name).mkdir(parents=True)
    with record(tmp_path) as log:
        backend = LocalBackend(tmp_path / "run")
        backend.create("manifests/1", b"1")
        backend.create("data/1", b"1")  # the name of the store is safe by now
        backend.create("data/2", b"1")

    synced = [op.path for op in log.ops[log.start :] if op.kind == "sync folder"]
    assert synced == ["", "run", "run/manifests", "run", "run/data", "run/data"]


def test_what_was_there_before_is_taken_as_synced(tmp_path: pathlib.Path) -> None:
    first = LocalBackend(tmp_path / "run")
    first.create("manifests/1", b"1" * 10)
    with record(tmp_path) as log:
        LocalBackend(tmp_path / "run").create("manifests/2", b"2" * 10)

    states = list(crash_states(log, model="weak", rng=random.Random(1)))
    assert len(states) > 5
    assert all(state.files["run/manifests/1"] == b"1" * 10 for state in states)


def test_the_log_leads_to_the_folder_as_it_is(log: PowerLog, tmp_path: pathlib.Path) -> None:
    """All operations kept, all bytes there: otherwise the recorder missed a call."""
    states = list(crash_states(log, model="weak", rng=random.Random(1), points=[len(log.ops)]))
    found = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }

    assert found in [state.files for state in states]


def test_a_state_is_the_same_in_memory_and_in_a_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk").mkdir()
    log = recorded(tmp_path / "disk")
    states = list(crash_states(log, model="weak", rng=random.Random(1)))
    assert any(".1." in path for state in states for path in state.files)  # unfinished files

    for number, state in enumerate(random.Random(2).sample(states, 40)):
        state.materialise(tmp_path / str(number))
        folder, memory = LocalBackend(tmp_path / str(number)), state.backend()
        for prefix in ("run/data", "run/manifests", "run/intents", "run/deep/er", "run"):
            keys = set(folder.list(prefix))
            assert keys == set(memory.list(prefix))
            assert all(folder.read(key) == memory.read(key) for key in keys)


def test_a_sample_of_names_is_drawn_where_there_are_many(tmp_path: pathlib.Path) -> None:
    with record(tmp_path) as log:
        backend = LocalBackend(tmp_path)
        for n in range(10):
            backend.create(f"intents/{n}", b"x", durable=False)

    states = list(crash_states(log, model="weak", rng=random.Random(1), points=[len(log.ops)]))
    counts = {sum(path.count(".") == 0 for path in state.files) for state in states}
    assert {0, 9, 10} <= counts


def test_no_call_that_changes_files_is_made_elsewhere() -> None:
    """The recorder sees `_syscalls` only, so nothing else may open or change a file."""
    reading = {"stat", "fstat", "scandir", "fsdecode", "fspath", "path", "fork", "PathLike"}
    for module in (local, _names, _write):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr=attribute):
                    assert attribute in reading | {"stat_result"}, (
                        f"{module.__name__}: os.{attribute}"
                    )
                case ast.Call(func=ast.Name(id="open")):
                    pytest.fail(f"{module.__name__}: open()")


def test_a_missing_object_is_missing_in_every_backend_of_a_state(
    tmp_path: pathlib.Path,
) -> None:
    with record(tmp_path) as log:
        LocalBackend(tmp_path).create("a/1", b"1")
    nothing = next(crash_states(log, model="weak", rng=random.Random(1)))

    with pytest.raises(NotFoundError):
        nothing.backend().read("a/1")
