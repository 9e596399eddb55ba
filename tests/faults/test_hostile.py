"""Manifests made to harm: every digest holds, and what they say is absurd.

Each is refused with an error of ours, quickly and without spending memory on what it claims.
Nothing foreign escapes (no RecursionError, MemoryError, OverflowError), nothing is executed,
and no key leaves the store.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError
from ckptfmt.format import _msgpack, frame, layout
from ckptfmt.format.digest import DIGESTS
from ckptfmt.format.records import Annotation, Intent
from ckptfmt.testing.strategies import assert_same

MAX_SECONDS = 1.0
MAX_NBYTES = 48 * 2**20  # of Python objects, while a manifest of a few kilobytes is refused

Body = dict[str, Any]
Edit = Callable[[Body, Body], object]  # (summary, body)

WEIGHTS = np.arange(24, dtype="<f4").reshape(4, 6)
STATE = {
    "model": {"w": WEIGHTS, "b": np.zeros(3)},
    "step": 3,
    "x": [1, (2, "a")],
    "scalar": np.float32(2),
}
STATE["tied"] = STATE["model"]["b"]  # type: ignore[index]
KEY = layout.manifest_key(1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {})


class Forge:
    """A store with one checkpoint whose manifest can be rewritten, digests and all."""

    def __init__(self) -> None:
        self.disk = MemoryBackend()
        ckptfmt.open(self.disk, threads=1).save(
            STATE, metrics={"loss": 0.5}, counters={"seen": 3}, tags=["a"]
        )
        data = self.disk.read(KEY)
        header = frame.decode_header(data)
        self.summary: Body = _msgpack.unpack(frame.summary_of(header, data), "$")
        self.body: Body = _msgpack.unpack(frame.body_of(header, data), "$")
        (self.data_key,) = self.disk.list(layout.DATA)

    def write(self, edit: Edit) -> None:
        summary, body = copy.deepcopy(self.summary), copy.deepcopy(self.body)
        edit(summary, body)
        packed = msgpack.packb(summary), msgpack.packb(body)
        self.disk.replace(KEY, frame.encode(frame.CHECKPOINT, *packed))

    def write_raw(self, body: bytes) -> None:
        packed = msgpack.packb(self.summary)
        self.disk.replace(KEY, frame.encode(frame.CHECKPOINT, packed, body))


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "capture", lambda *_, **__: {})
        yield Forge()


def use(disk: MemoryBackend) -> Any:
    """Do everything one can with checkpoint 1; returns its state."""
    store = ckptfmt.open(disk, threads=1)
    store.entries()
    repr(list(store))
    checkpoint = store[1]
    repr((checkpoint, checkpoint.arrays, checkpoint.time, checkpoint.sections))
    repr((checkpoint.history, checkpoint.artifacts, checkpoint.metrics, checkpoint.tags))
    checkpoint.check_environment()
    checkpoint.verify().raise_for_problems()
    state = checkpoint.load()
    checkpoint.load(mmap=True)
    checkpoint.compare(state)
    for path in checkpoint.arrays:
        checkpoint[path][...]
    return state


def refusal(disk: MemoryBackend) -> CheckpointError | None:
    """Use checkpoint 1; return how it was refused, or None. Bounds time and memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        use(disk)
    except CheckpointError as error:
        refused: CheckpointError | None = error
    else:
        refused = None
    finally:
        seconds = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_NBYTES
    if refused is not None:
        assert len(str(refused)) < 50_000
    return refused


def test_an_unchanged_manifest_is_accepted(forge: Forge) -> None:
    forge.write(lambda summary, body: None)

    assert refusal(forge.disk) is None
    assert_same(use(forge.disk), STATE)


# ---- every field, every type


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


MISSING = object()
WRONG: dict[str, Any] = {
    "missing": MISSING,
    "nil": None,
    "true": True,
    "negative": -1,
    "large": 2**64 - 1,
    "float": 1.5,
    "text": "x",
    "bytes": b"x",
    "list": [],
    "map": {},
    "list of list": [[]],
    "list of int": [1, 2],
    "deep": nested(300),
    "as deep as msgpack goes": nested(900),
    "deep in a map": {"x": nested(900)},
    "long text": "x" * 1_000_000,
    "long bytes": b"\xff" * 1_000_000,
    "long list": [0] * 100_000,
    "lone surrogate": "\ud800".encode("utf-8", "surrogatepass"),
}


def fields(value: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in value.items():
        yield (*above, name)
        if isinstance(below, dict):
            yield from fields(below, (*above, name))


def put(target: Body, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        target = target[name]
    if value is MISSING:
        del target[path[-1]]
    else:
        target[path[-1]] = value


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("part", ["summary", "body"])
def test_every_field_refuses_every_wrong_type(forge: Forge, part: str, wrong: Any) -> None:
    refused = 0
    for path in fields(getattr(forge, part)):

        def edit(summary: Body, body: Body, path: tuple[str, ...] = path) -> None:
            put(summary if part == "summary" else body, path, wrong)

        forge.write(edit)
        error = refusal(forge.disk)
        assert error is None or isinstance(error, FormatError), (path, error)
        refused += error is not None
    assert refused > len(list(fields(getattr(forge, part)))) // 3


# ---- columns of numbers


def column(table: str, name: str, kind: str, *values: int) -> Edit:
    """Return an edit that overwrites the first values of a packed column."""

    def edit(summary: Body, body: Body) -> None:
        data = body[table][name]
        new = struct.pack(f"<{len(values)}{kind}", *values)
        body[table][name] = new + data[len(new) :]

    return edit


EDGES = [2**64 - 1, 2**63, 2**62, 2**61, 2**56, 2**55, 2**48, 2**40, 2**32]
NUMBERS = {
    **{f"shape {v:x}": column("arrays", "shape", "Q", v) for v in [*EDGES, 0]},
    "shape whose product wraps to 0": column("arrays", "shape", "Q", 2**32, 2**32),
    "shape whose product wraps to 24": column("arrays", "shape", "Q", 2**61 + 4, 6),
    "shape 0 by 2^61": column("arrays", "shape", "Q", 0, 2**61),
    **{f"offset {v:x}": column("chunks", "offset", "Q", v) for v in [*EDGES, 0, 1]},
    **{f"nbytes {v:x}": column("chunks", "nbytes", "Q", v) for v in [*EDGES, 0, 95, 97]},
    **{f"file length {v:x}": column("files", "nbytes", "Q", v) for v in [*EDGES, 0, 8]},
    **{f"header length {v:x}": column("files", "header_nbytes", "Q", v) for v in [*EDGES, 0]},
    **{f"file number {v:x}": column("files", "number", "Q", v) for v in EDGES[:-1]},
    **{f"{v:x} chunks": column("arrays", "chunks", "I", v) for v in (0, 2, 2**31, 2**32 - 1)},
    **{f"file row {v:x}": column("chunks", "file", "I", v) for v in (1, 2**31, 2**32 - 1)},
    **{f"codec row {v}": column("chunks", "codec", "B", v) for v in (1, 255)},
    **{f"ndim {v}": column("arrays", "ndim", "B", v) for v in (0, 1, 3, 32, 33, 64, 65, 255)},
    **{f"dtype row {v}": column("arrays", "dtype", "H", v) for v in (1, 2, 2**16 - 1)},
}


@pytest.mark.parametrize("edit", NUMBERS.values(), ids=NUMBERS)
def test_absurd_numbers_are_refused(forge: Forge, edit: Edit) -> None:
    forge.write(edit)

    assert isinstance(refusal(forge.disk), FormatError)


def an_array_of(nbytes: int, codec: str) -> Edit:
    """Return an edit that makes `model/w` claim so many bytes, consistently."""

    def edit(summary: Body, body: Body) -> None:
        column("arrays", "shape", "Q", nbytes // 24, 6)(summary, body)
        if codec == "zstd":
            body["chunks"]["codecs"] = ["raw", "zstd"]
            body["chunks"]["codec"] = bytes([1, 0])
            body["chunks"]["raw_digest"] = bytes(16)
            return
        column("chunks", "nbytes", "Q", nbytes // 24 * 24)(summary, body)
        column("chunks", "offset", "Q", 0, nbytes)(summary, body)
        column("files", "nbytes", "Q", nbytes + 100_000)(summary, body)

    return edit


@pytest.mark.parametrize("exponent", [27, 30, 33, 37, 40, 50, 55])
def test_an_array_larger_than_its_file_costs_no_memory(forge: Forge, exponent: int) -> None:
    forge.write(an_array_of(2**exponent, "raw"))

    assert isinstance(refusal(forge.disk), IntegrityError)
    lazy = ckptfmt.open(forge.disk)[1]["model/w"]
    for index in (0, slice(5, 6), slice(None), ...):
        with pytest.raises(IntegrityError):
            lazy[index]


@pytest.mark.parametrize("exponent", [31, 37, 50, 55])
def test_an_encoded_chunk_has_a_limit(forge: Forge, exponent: int) -> None:
    forge.write(an_array_of(2**exponent, "zstd"))

    assert isinstance(refusal(forge.disk), FormatError)


# ---- names


@pytest.mark.parametrize(
    "key",
    [
        "data/../manifests/x",
        "data/..",
        "data/.",
        "data/.hidden",
        "data/a/b",
        "data/",
        "data",
        "",
        "/etc/passwd",
        "../data/x",
        "data//x",
        "data/x\n",
        "data/x\0",
        "data\\x",
        "DATA/x",
        "data/ä",
        "data/a b",
        "data/%2e%2e",
        "file:///etc/passwd",
        "manifests/0000000001-000.ckpt",
        "data/" + "a" * 201,
    ],
)
def test_no_key_leaves_the_data_folder(forge: Forge, key: str) -> None:
    forge.write(lambda summary, body: put(body, ("files", "key"), [key]))

    assert isinstance(refusal(forge.disk), FormatError)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        "c:",
        "a\0",
        "a\n",
        "a ",
        " a",
        "a.",
        "x" * 256,
    ],
)
def test_no_artifact_leaves_its_folder(forge: Forge, name: str) -> None:
    row = [name, 1, DIGESTS["xxh3-128"].of(b"x"), b"x"]
    forge.write(lambda summary, body: put(body, ("artifacts",), [row]))

    assert isinstance(refusal(forge.disk), FormatError)


PATHS: dict[str, Edit] = {
    "exchanged": lambda s, b: b["arrays"]["path"].reverse(),
    "twice": lambda s, b: put(b, ("arrays", "path"), ["model/w", "model/w"]),
    "unescaped": lambda s, b: put(b, ("arrays", "path"), ["model/w", "model~1b"]),
    "empty": lambda s, b: put(b, ("arrays", "path"), ["", "model/b"]),
    "long": lambda s, b: put(b, ("arrays", "path"), ["x" * 9000, "model/b"]),
    "alias of itself": lambda s, b: b["arrays"]["aliases"].append([0, "model/w"]),
    "alias missing": lambda s, b: b["arrays"]["aliases"].clear(),
    "alias of nothing": lambda s, b: b["arrays"]["aliases"].append([0, "elsewhere"]),
    "alias of row 2": lambda s, b: b["arrays"]["aliases"].append([2, "elsewhere"]),
    "file twice": lambda s, b: b["files"]["key"].append(b["files"]["key"][0]),
    "dtype twice": lambda s, b: b["arrays"]["dtypes"].append("F32"),
    "dtype unknown": lambda s, b: put(b, ("arrays", "dtypes"), ["F32", "F1024"]),
    "dtype object": lambda s, b: put(b, ("arrays", "dtypes"), ["F32", "object"]),
    "codec unknown": lambda s, b: put(b, ("chunks", "codecs"), ["exec"]),
    "digest unknown": lambda s, b: put(b, ("digest",), "md5"),
    "digest other": lambda s, b: put(b, ("digest",), "sha256"),
}


@pytest.mark.parametrize("edit", PATHS.values(), ids=PATHS)
def test_tables_that_contradict_themselves_are_refused(forge: Forge, edit: Edit) -> None:
    forge.write(edit)

    assert isinstance(refusal(forge.disk), FormatError)


def test_a_chunk_under_two_arrays_is_refused(forge: Forge) -> None:
    """Else a small file could stand for petabytes."""
    forge.write(column("chunks", "offset", "Q", 0, 0))

    assert isinstance(refusal(forge.disk), FormatError)


# ---- trees


def with_tree(value: Any) -> Edit:
    def edit(summary: Body, body: Body) -> None:
        body["tree"][1].append("hostile")
        body["tree"][2].append(value)

    return edit


def a_list_in_a_list(depth: int) -> list[Any]:
    node: Any = None
    for _ in range(depth):
        node = [1, [node]]
    return node  # type: ignore[no-any-return]


TREES: dict[str, Any] = {
    "101 deep": a_list_in_a_list(101),
    "400 deep": a_list_in_a_list(400),
    "row of nothing": [3, 2],
    "row -1": [3, -1],
    "row true": [3, True],
    "row again": [3, 0],
    "one text twice": [0, [1, "1"], [None, None]],
    "one key twice": [0, ["a", "a"], [None, None]],
    "key nil": [0, [None], [None]],
    "key true": [0, [True], [None]],
    "key list": [0, [[]], [None]],
    "fewer values": [0, ["a", "b"], [None]],
    "no tag": [],
    "tag 8": [8, "os.system"],
    "tag true": [True, []],
    "tag float": [1.0, []],
    "bare map": {"a": 1},
    "scalar object": [4, "O", b"12345678"],
    "scalar short": [4, "F32", b"123"],
    "scalar bool 2": [4, "BOOL", b"\2"],
    "big int that is small": [5, b"\1"],
    "big int padded": [5, b"\0" * 20 + b"\1" * 9],
    "complex of int": [6, 1, 2],
    "date 30 February": [7, "2026-02-30T00:00:00"],
    "date with zone name": [7, "2026-02-03T00:00:00 CET"],
    "date long": [7, "2" * 100_000],
}


@pytest.mark.parametrize("value", TREES.values(), ids=TREES)
def test_a_tree_that_no_writer_writes_is_refused(forge: Forge, value: Any) -> None:
    forge.write(with_tree(value))

    assert isinstance(refusal(forge.disk), FormatError)


def test_a_very_large_integer_is_shown_and_loaded(forge: Forge) -> None:
    """Python refuses to print more than 4300 digits."""
    forge.write(with_tree([5, b"\x7f" * 100_000]))

    assert refusal(forge.disk) is None
    assert use(forge.disk)["hostile"].bit_length() == 799_999


@pytest.mark.parametrize("micros", [2**63 - 1, 253_402_300_800_000_000, 2**53])
def test_a_time_beyond_the_calendar_is_no_reason_to_lose_a_checkpoint(
    forge: Forge, micros: int
) -> None:
    forge.write(lambda summary, body: put(summary, ("time",), micros))

    assert refusal(forge.disk) is None
    assert ckptfmt.open(forge.disk).best("loss").number == 1


@pytest.mark.parametrize("operation", ["read", "write", "delete"])
def test_an_unknown_feature_stops_what_needs_it(forge: Forge, operation: str) -> None:
    forge.write(lambda summary, body: put(summary, ("features", operation), ["delta-v9"]))
    store = ckptfmt.open(forge.disk)
    try:
        if operation == "read":
            for act in (store.latest, lambda: store[1]):
                with pytest.raises(UnsupportedError, match="delta-v9"):
                    act()
            return
        assert_same(store.latest().load(), STATE)
        if operation == "delete":
            with pytest.raises(UnsupportedError, match="delta-v9"):
                store.delete(1)
            assert any("delta-v9" in reason for reason in store.collect().blocked)
        else:
            saved = store.save(STATE, parent=None)
            assert saved.reused_bytes == 0
    finally:
        for key in forge.disk.list(layout.MANIFESTS):
            if key != KEY:
                forge.disk.delete(key)


# ---- bombs, in a process of their own


BOMBS = {
    "a zstd body that lies about its length": """
        header = struct.pack("<IBBQ", 0xFD2FB528, 3 << 6, 10 << 3, 10_000_000)
        block = struct.pack("<I", 1 << 1 | 131072 << 3)[:3] + b"0"
        last = struct.pack("<I", 1 | 1 << 1 | 131072 << 3)[:3] + b"0"
        stored = header + block * 50_000 + last  # 6.5 GB
        write(forged_body(stored, raw=10_000_000))
    """,
    "a zstd chunk that lies about its length": """
        header = struct.pack("<IBBQ", 0xFD2FB528, 3 << 6, 10 << 3, 2**24)
        block = struct.pack("<I", 1 << 1 | 131072 << 3)[:3] + b"0"
        last = struct.pack("<I", 1 | 1 << 1 | 131072 << 3)[:3] + b"0"
        chunk_file(header + block * 50_000 + last, decoded=2**24)
    """,
    "1 KB that decodes to 20 MB": """
        lists = b"\\xdd" + struct.pack(">I", 20_000_000) + b"\\x90" * 20_000_000
        write(forged_body(zstandard.compress(lists)))
    """,
    "a list of empty lists": """
        lists = b"\\xdd\\x00\\x0f\\x42\\x40" + b"\\x90" * 1_000_000
        write(forged_body(zstandard.compress(lists)))
    """,
    "a list said to be long": """
        write(forged_body(b"\\x81\\xa4tree\\xdd\\xff\\xff\\xff\\xff" + b"\\x90" * 100))
    """,
    "a text said to be long": """
        write(forged_body(b"\\x81\\xa4tree\\xdb\\xff\\xff\\xff\\xff" + b"x" * 100))
    """,
    "a map said to be long": """
        write(forged_body(b"\\x81\\xa4tree\\xdf\\xff\\xff\\xff\\xff" + b"\\xa1x\\xc0" * 100))
    """,
    "lists in lists in lists": """
        write(forged_body(b"\\x81\\xa4tree" + b"\\x91" * 1_000_000))
    """,
    "a manifest of 100 GB": """
        write(forged_body(b"\\x80", summary_nbytes=99 * 2**30), length=100 * 2**30)
    """,
    "many boxes beside each other": """
        boxes(500_000)
    """,
}

PRELUDE = """
import dataclasses, hashlib, resource, struct, sys, time
import msgpack, numpy as np, zstandard
import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import FormatError
from ckptfmt.format import frame, layout

class Disk:
    def __init__(self):
        self.inner = MemoryBackend()
        self.lengths = {}
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def list(self, prefix):
        found = self.inner.list(prefix)
        return {k: dataclasses.replace(e, nbytes=self.lengths.get(k, e.nbytes))
                for k, e in found.items()}
    def read(self, key, offset=0, nbytes=None):
        if key in self.lengths:  # sparse behind its beginning
            if nbytes is None or nbytes > 2**20:
                raise MemoryError("asked for everything")
            return self.inner.read(key)[offset : offset + nbytes].ljust(nbytes, b"0")
        return self.inner.read(key, offset, nbytes)

disk = Disk()
key = layout.manifest_key(1)
ckptfmt.open(disk, threads=1).save({"model": {"w": np.arange(8.0)}})
data = disk.read(key)
header = frame.decode_header(data)
summary = frame.summary_of(header, data)
body = msgpack.unpackb(frame.body_of(header, data), strict_map_key=False)

def forged_body(stored, raw=None, summary_nbytes=len(summary)):
    if raw is None:
        encoding = stored[:4] == b"\\x28\\xb5\\x2f\\xfd"
        raw = zstandard.frame_content_size(stored) if encoding else len(stored)
    else:
        encoding = True
    head = struct.pack("<8sHBB4sQQQ8s16s32s32s", frame.MAGIC, 1, 1, encoding, bytes(4),
        summary_nbytes, len(stored), raw, bytes(8), bytes(16),
        hashlib.sha256(summary).digest(), hashlib.sha256(stored).digest())
    head = head[:40] + hashlib.sha256(head).digest()[:8] + head[48:]
    return head + summary + stored

def write(data, length=None):
    disk.replace(key, data)
    if length:
        disk.lengths[key] = length

def chunk_file(stored, decoded):
    body["arrays"]["shape"] = struct.pack("<Q", decoded // 8)
    body["chunks"] |= {"codecs": ["zstd"], "raw_digest": bytes(16),
        "nbytes": struct.pack("<Q", len(stored)),
        "digest": ckptfmt.format.digest.DIGESTS["xxh3-128"].of(stored)}
    n = struct.unpack("<Q", body["files"]["header_nbytes"])[0]
    body["files"]["nbytes"] = struct.pack("<Q", 8 + n + len(stored))
    name = body["files"]["key"][0]
    disk.replace(name, disk.read(name, 0, 8 + n) + stored)
    write(frame.encode(1, summary, msgpack.packb(body)))

def boxes(n):
    start = np.zeros((n, 2), "<u8")
    start[:, 1] = np.arange(n)
    start[7, 1] = 8
    body["arrays"] |= {"shape": struct.pack("<QQ", 1, n), "ndim": b"\\2",
        "chunks": struct.pack("<I", n)}
    body["chunks"] |= {"file": bytes(4 * n), "offset": np.arange(0, 8 * n, 8, "<u8").tobytes(),
        "nbytes": np.full(n, 8, "<u8").tobytes(), "codec": bytes(n), "digest": bytes(16 * n),
        "start": start.tobytes(), "shape": np.ones((n, 2), "<u8").tobytes()}
    body["files"]["nbytes"] = struct.pack("<Q", 2**40)
    write(frame.encode(1, summary, msgpack.packb(body)))

def refuse():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    try:
        ckptfmt.open(disk, threads=1)[1].load()
    except FormatError as error:
        print(str(error)[:300], file=sys.stderr)
    else:
        raise SystemExit("accepted")
    seconds = time.process_time() - began
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(bomb: str) -> None:
    script = PRELUDE + textwrap.dedent(BOMBS[bomb]) + "\nrefuse()\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 3
    assert megabytes < (500 if "many" in bomb else 150)  # those are a manifest of 40 MB


# ---- records


@pytest.mark.parametrize(
    "field",
    [
        ("metrics.loss", "low"),
        ("metrics.loss", [1]),
        ("metrics.loss", True),
        ("tags.a", 3),
        ("tags.a", False),
    ],
)
def test_an_annotation_of_the_wrong_type_is_passed_over(field: tuple[str, Any]) -> None:
    forge = Forge()
    store = ckptfmt.open(forge.disk)
    store.save(STATE, metrics={"loss": 0.25})
    note = Annotation(number=1, id=store[1].id, n=1, time=0, fields=dict([field]))
    forge.disk.create(layout.annotation_key(1, store[1].id, 1), note.encode())

    again = ckptfmt.open(forge.disk)
    assert again.best("loss", lineage="all").number == 2
    assert again.best("loss", mode="max", lineage="all").number == 1
    assert (again[1].metrics, again[1].tags) == ({"loss": 0.5}, ("a",))


@pytest.mark.parametrize(
    "reuse", [["../../etc/passwd"], ["manifests/0000000001-000.ckpt"], ["data/.."], [None], "x"]
)
def test_a_lease_protects_no_file_outside_the_store(forge: Forge, reuse: Any) -> None:
    forge.write(lambda summary, body: None)
    lease = Intent(kind="save", save="a" * 24, number=9)
    object.__setattr__(lease, "reuse", reuse)
    forge.disk.create(layout.intent_key("a" * 24), lease.encode())
    try:
        (reason,) = ckptfmt.open(forge.disk).collect().blocked
        assert "is damaged" in reason
    finally:
        forge.disk.delete(layout.intent_key("a" * 24))


def test_a_name_at_the_end_of_all_numbers_stops_saving_aloud(forge: Forge) -> None:
    """The next number would have eleven digits, and no listing would show it."""
    forge.write(lambda summary, body: None)
    key = layout.manifest_key(layout.MAX_NUMBER)
    forge.disk.create(key, b"anything")
    before = set(forge.disk.list(layout.MANIFESTS))
    try:
        with pytest.raises(CheckpointError, match="9999999999"):
            ckptfmt.open(forge.disk).save(STATE)
        assert set(forge.disk.list(layout.MANIFESTS)) == before
        assert forge.disk.list(layout.INTENTS) == {}
    finally:
        forge.disk.delete(key)


# ---- chance


def test_random_changes_behind_valid_digests(forge: Forge, seed: int, soak: bool) -> None:
    """Flip, exchange, repeat and cut anything in the decoded body, then seal it again."""
    rng = random.Random(seed)
    body = msgpack.packb(forge.body)
    accepted = 0
    for _ in range(20_000 if soak else 400):
        changed = bytearray(body)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            at = rng.randrange(len(changed))
            match rng.randrange(5):
                case 0:
                    changed[at] ^= 1 << rng.randrange(8)
                case 1:
                    changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xC0, 0xDD, 0xDF, 0xFF])
                case 2:
                    changed[at:at] = rng.randbytes(rng.randrange(1, 5))
                case 3:
                    del changed[at : at + rng.randrange(1, 9)]
                case _:
                    other = rng.randrange(len(changed))
                    changed[at : at + 8] = changed[other : other + 8]
        forge.write_raw(bytes(changed))
        error = refusal(forge.disk)
        assert error is None or isinstance(error, FormatError), (error, bytes(changed))
        accepted += error is None
    assert accepted < 0.7 * (20_000 if soak else 400)  # texts and numbers of the tree change


def test_the_marker_may_say_anything_but_another_format(forge: Forge) -> None:
    marker = json.loads(forge.disk.read(layout.MARKER))
    marker["about"] = marker["more"] = "x" * 100_000
    saved = forge.disk.read(layout.MARKER)
    forge.write(lambda summary, body: None)
    forge.disk.replace(layout.MARKER, json.dumps(marker).encode())
    try:
        assert refusal(forge.disk) is None
    finally:
        forge.disk.replace(layout.MARKER, saved)
