"""Bytes change where they lie: every part of every kind of file, in every way.

Damage is made by the test from a good store. What must hold: a damaged checkpoint is never
loaded in part, nor as another state; the one before is found; the next save succeeds; nothing
that the damaged one may need is deleted; and `forget` is the way out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import plan
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptfmt.format import frame, layout
from ckptfmt.format.records import Intent
from ckptfmt.options import FENCE_SECONDS
from ckptfmt.testing.strategies import assert_same, difference

State = dict[str, Any]
Damage = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MISC_NBYTES", 100)  # several small files
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {"python": "3"})


def state(seed: int) -> State:
    """Return a state whose `model` is the same for every seed."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        "model": {"w": fixed.standard_normal((5, 5)), "b": fixed.standard_normal(3)},
        "optimizer": {"m": rng.standard_normal((5, 5))},
        "step": seed,
    }


STATES = {seed: state(seed) for seed in (1, 2, 3, 4)}
NEWEST = 3


def put(backend: MemoryBackend, key: str, data: bytes) -> None:
    """Change a file behind everybody's back."""
    backend.replace(key, data)


@pytest.fixture
def disk() -> MemoryBackend:
    """A store of three checkpoints; 2 and 3 share the weights of 1."""
    backend = MemoryBackend()
    store = ckptfmt.open(backend, threads=1)
    for number in (1, 2, 3):
        store.save(STATES[number], metrics={"loss": 1 / number}, counters={"seen": number})
    store.annotate(1, {"notes": "first", "metrics.late": 7})
    return backend


def parts(data: bytes) -> dict[str, slice]:
    """Return the regions of a manifest file (spec §6.1)."""
    header = frame.decode_header(data)
    body = frame.HEADER_NBYTES + header.summary_nbytes
    return {
        "magic": slice(0, 8),
        "version": slice(8, 10),
        "kind": slice(10, 11),
        "encoding": slice(11, 12),
        "reserved": slice(12, 16),
        "lengths": slice(16, 40),
        "check": slice(40, 48),
        "more reserved": slice(48, 64),
        "summary digest": slice(64, 96),
        "body digest": slice(96, 128),
        "summary": slice(128, body),
        "body": slice(body, len(data)),
    }


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages(data: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield everything that is done to the bytes of one file."""
    for n in (0, 1, 7, 8, 9, 127, 128, 129):
        yield f"cut to {n}", data[: min(n, len(data) - 1)]
    yield "cut in half", data[: len(data) // 2]
    yield "one byte less", data[:-1]
    yield "one byte more", data + b"\0"
    yield "twice", data + data
    yield "zeros", bytes(len(data))
    yield "ones", b"\xff" * len(data)
    yield "noise", random.Random(1).randbytes(len(data))
    yield "another file", other
    yield "text", b"<html>502 Bad Gateway</html>\n"
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(100)
    yield "second half lost", data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield "blocks exchanged", data[len(data) // 2 :] + data[: len(data) // 2]


MANIFEST_DAMAGES = [
    *(f"flip in {name}" for name in parts(bytes(frame.encode(frame.CHECKPOINT, b"s", b"b")))),
    *(name for name, _ in damages(bytes(300), b"")),
]


def damage_manifest(backend: MemoryBackend, number: int, how: str) -> None:
    key = layout.manifest_key(number)
    data = backend.read(key)
    if how.startswith("flip in "):
        region = parts(data)[how.removeprefix("flip in ")]
        put(backend, key, flipped(data, 8 * ((region.start + region.stop) // 2) + 3))
        return
    other = backend.read(layout.manifest_key(1 if number != 1 else 2))
    put(backend, key, dict(damages(data, other))[how])


@pytest.fixture(params=MANIFEST_DAMAGES)
def damaged(request: pytest.FixtureRequest, disk: MemoryBackend) -> MemoryBackend:
    """The store, its newest manifest damaged."""
    damage_manifest(disk, NEWEST, request.param)
    return disk


def test_latest_passes_over_a_damaged_manifest_with_a_warning(
    damaged: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        found = ckptfmt.open(damaged).latest()

    assert found.number == 2
    assert_same(found.load(), STATES[2])
    warnings = [record.getMessage() for record in caplog.records]
    assert any("checkpoint 3 is damaged" in text for text in warnings), warnings


def test_a_damaged_manifest_is_an_error_that_names_it(damaged: MemoryBackend) -> None:
    with pytest.raises(FormatError) as caught:
        ckptfmt.open(damaged)[3].load()

    assert not isinstance(caught.value, UnsupportedError)
    assert "manifests/0000000003-000.ckpt" in str(caught.value)


def test_a_save_after_a_damaged_manifest_takes_the_next_number(damaged: MemoryBackend) -> None:
    store = ckptfmt.open(damaged)
    store.latest().load()

    saved = store.save(STATES[4])

    assert saved.number == 4
    assert saved.parent == (2, store[2].id)
    assert_same(ckptfmt.open(damaged).latest().load(), STATES[4])


def resumed(disk: MemoryBackend, *, last: int) -> ckptfmt.Store:
    """Return a store whose next save goes on from the newest: that one may then be deleted."""
    store = ckptfmt.open(disk, keep=ckptfmt.keep(last=last))
    store.latest().load()
    return store


def test_nothing_is_deleted_beside_a_damaged_manifest(damaged: MemoryBackend) -> None:
    before = dict(damaged.list(layout.DATA))
    damaged.create(f"data/{'f' * 24}-model-0.safetensors", b"nobody references this")

    swept = ckptfmt.open(damaged).collect()
    resumed(damaged, last=1).save(STATES[4])
    deleted = ckptfmt.open(damaged).delete(1)

    assert swept.files == deleted.files == ()
    assert any("checkpoint 3" in reason for reason in swept.blocked)
    assert any("checkpoint 3" in reason for reason in deleted.blocked)
    assert before.keys() <= damaged.list(layout.DATA).keys()


def test_retention_deletes_no_checkpoint_beside_a_damaged_manifest(
    damaged: MemoryBackend,
) -> None:
    """The damaged one must not stand for a good one when the last so many are counted."""
    resumed(damaged, last=2).save(STATES[4])

    store = ckptfmt.open(damaged)
    for number in (1, 2, 4):
        assert_same(store[number].load(), STATES[number])


def test_a_damaged_manifest_can_be_forgotten(damaged: MemoryBackend) -> None:
    with pytest.raises((UsageError, FormatError)):
        ckptfmt.open(damaged).delete(3)

    would = ckptfmt.open(damaged).collect(forget=[3], dry_run=True)
    report = ckptfmt.open(damaged).collect(forget=[3])

    store = ckptfmt.open(damaged)
    assert would.files == report.files
    assert len(report.files) == 1  # the optimizer of 3; the weights are shared
    assert report.blocked == ()
    assert {row.number: row.status for row in store.entries()}[3] == "tombstone"
    assert store.save(STATES[4]).number == 4
    for number in (1, 2, 4):
        assert_same(store[number].load(), STATES[number])
    with pytest.raises(NotFoundError):
        store[3]


def test_only_what_is_damaged_can_be_forgotten(disk: MemoryBackend) -> None:
    for number in (1, 3, 99):
        with pytest.raises(UsageError):
            ckptfmt.open(disk).collect(forget=[number])

    assert len(ckptfmt.open(disk)) == 3
    assert disk.list(layout.INTENTS) == {}


@pytest.mark.parametrize("how", MANIFEST_DAMAGES)
def test_an_older_damaged_manifest_hides_only_itself(disk: MemoryBackend, how: str) -> None:
    damage_manifest(disk, 2, how)

    store = ckptfmt.open(disk)
    assert_same(store.latest().load(), STATES[3])
    assert_same(store[1].load(), STATES[1])
    with pytest.raises(FormatError):
        store[2].load()


def test_all_damaged_is_not_found_and_says_so(disk: MemoryBackend) -> None:
    for number in (1, 2, 3):
        damage_manifest(disk, number, "zeros")

    with pytest.raises(NotFoundError, match=r"damaged=\[3, 2, 1\]"):
        ckptfmt.open(disk).latest()


def test_swapped_manifests_are_both_refused(disk: MemoryBackend) -> None:
    two, three = (disk.read(layout.manifest_key(n)) for n in (2, 3))
    put(disk, layout.manifest_key(2), three)
    put(disk, layout.manifest_key(3), two)
    store = ckptfmt.open(disk)

    assert store.latest().number == 1
    for number in (2, 3):
        with pytest.raises(IntegrityError, match="another name"):
            store[number]


# ---- revisions


def revise(disk: MemoryBackend, number: int, state: State) -> str:
    """Write revision 1 of a checkpoint as a later release may; returns its key."""
    scratch = MemoryBackend()
    other = ckptfmt.open(scratch, threads=1).save(state).manifest
    for file in other.tables.files:
        disk.create(file.key, scratch.read(file.key))
    old = ckptfmt.open(disk)[number].manifest
    summary = dataclasses.replace(old.summary, revision=1, save="d" * 24)
    manifest = dataclasses.replace(old, summary=summary, tree=other.tree, tables=other.tables)
    key = layout.manifest_key(number, 1)
    disk.create(key, manifest.encode())
    return key


def test_the_highest_revision_is_read(disk: MemoryBackend) -> None:
    revise(disk, 3, STATES[4])
    store = ckptfmt.open(disk)

    assert (store.latest().number, store.latest().revision) == (3, 1)
    assert_same(store[3].load(), STATES[4])
    assert store.collect().blocked == ()
    assert_same(store[3].load(), STATES[4])


@pytest.mark.parametrize("region", ["magic", "summary", "body"])
def test_a_damaged_revision_is_passed_over_with_a_warning(
    disk: MemoryBackend, region: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = revise(disk, 3, STATES[4])
    before = disk.list(layout.DATA).keys()
    data = disk.read(key)
    put(disk, key, flipped(data, 8 * parts(data)[region].start + 5))
    store = ckptfmt.open(disk)

    found = store.latest()
    assert (found.number, found.revision) == (3, 0)
    assert_same(found.load(), STATES[3])
    assert key in caplog.text
    assert store.collect().files == store.delete(1).files == ()
    assert disk.list(layout.DATA).keys() == before

    report = store.collect(forget=[3])
    assert report.blocked == ()
    assert len(report.files) == 3  # two of the revision, one of checkpoint 1
    assert_same(ckptfmt.open(disk).latest().load(), STATES[3])


def test_a_revision_of_a_deleted_number_does_not_live(disk: MemoryBackend) -> None:
    key = revise(disk, 3, STATES[4])
    store = ckptfmt.open(disk)
    store.delete(3)

    assert [c.number for c in store] == [1, 2]
    assert key in disk.list(layout.MANIFESTS)
    assert store.save(STATES[4]).number == 4


def test_a_revision_without_its_checkpoint_is_collected(disk: MemoryBackend) -> None:
    key = revise(disk, 2, STATES[4])
    disk.delete(layout.manifest_key(2))
    store = ckptfmt.open(disk)

    assert [c.number for c in store] == [1, 3]
    store.collect()
    assert key not in disk.list(layout.MANIFESTS)
    assert_same(store.latest().load(), STATES[3])


# ---- newer formats


def newer(data: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Return a manifest of a later version: its header check holds."""
    header = bytearray(data[:128])
    change(header)
    header[40:48] = bytes(8)
    header[40:48] = frame._header_check(bytes(header))
    return bytes(header) + data[128:]


# version, kind, encoding, reserved bytes
NEWER = [(8, 2), (9, 1), (10, 3), (11, 2), (12, 1), (63, 1)]


@pytest.mark.parametrize(("offset", "value"), NEWER)
def test_a_newer_manifest_is_unsupported(disk: MemoryBackend, offset: int, value: int) -> None:
    """An older checkpoint instead would be a silent step back."""

    def change(header: bytearray) -> None:
        header[offset] = value

    key = layout.manifest_key(3)
    put(disk, key, newer(disk.read(key), change))
    store = ckptfmt.open(disk)

    with pytest.raises(UnsupportedError):
        store.latest()
    with pytest.raises(UnsupportedError):
        store[3]
    assert_same(store[2].load(), STATES[2])
    assert {row.number: row.status for row in store.entries()}[3] == "newer"
    assert store.save(STATES[4]).number == 4
    assert any("checkpoint 3" in reason for reason in store.collect().blocked)
    assert store.collect(forget=[3]).blocked == ()


def test_a_newer_revision_is_unsupported_although_an_older_one_is_there(
    disk: MemoryBackend,
) -> None:
    def change(header: bytearray) -> None:
        header[8] = 2

    key = revise(disk, 3, STATES[4])
    put(disk, key, newer(disk.read(key), change))

    with pytest.raises(UnsupportedError):
        ckptfmt.open(disk).latest()


@pytest.mark.parametrize("how", ["cut in half", "one byte less", "one byte more", "twice"])
def test_a_listing_shows_manifests_of_the_wrong_length(disk: MemoryBackend, how: str) -> None:
    damage_manifest(disk, 2, how)

    statuses = [row.status for row in ckptfmt.open(disk).entries()]
    assert statuses == ["ok", "damaged", "ok"]


FOREIGN = [
    "data/model.safetensors",
    "data/8109b291836fb1013ed4b06f.safetensors",
    "data/8109B291836FB1013ED4B06F-model-0.safetensors",
    "manifests/README",
    "manifests/0000000002-000.ckpt.bak",
    "manifests/00000000002-000.ckpt",
    "manifests/2-0.ckpt",
    "intents/notes.txt",
    "annotations/0000000001.msgpack",
    "index.json",
]


def test_files_of_others_are_ignored_and_never_deleted(disk: MemoryBackend) -> None:
    for key in FOREIGN:
        disk.create(key, b"somebody else's")
    store = ckptfmt.open(disk, keep=ckptfmt.keep(last=1))

    assert len(store) == 3
    assert store.save(STATES[4]).number == 4
    assert store.collect(break_lease=True).files == ()

    assert_same(store.latest().load(), STATES[4])
    for key in FOREIGN:
        assert disk.read(key) == b"somebody else's"


# ---- data files


def data_key(disk: MemoryBackend, number: int, section: str) -> str:
    files = ckptfmt.open(disk)[number].manifest.tables.files
    (key,) = [f.key for f in files if section in f.key and f.number == number]
    return key


DATA_DAMAGES = [name for name, _ in damages(bytes(300), b"")]


@pytest.mark.parametrize("how", DATA_DAMAGES)
def test_damaged_data_is_never_loaded(disk: MemoryBackend, how: str) -> None:
    key = data_key(disk, 3, "optimizer")
    other = disk.read(data_key(disk, 2, "optimizer"))
    put(disk, key, dict(damages(disk.read(key), other))[how])
    checkpoint = ckptfmt.open(disk)[3]

    report = checkpoint.verify()
    assert {problem.key for problem in report.problems} == {key}
    if how not in ("one byte more", "twice"):  # the bytes that are read are all there
        for way in ({}, {"mmap": True}, {"select": "optimizer/m"}, {"into": state(0)}):
            with pytest.raises(IntegrityError) as caught:
                checkpoint.load(**way)
            assert caught.value.where["path"] == "optimizer/m"
            assert caught.value.where["file"] == key
            assert isinstance(caught.value.where["offset"], int)
        with pytest.raises(IntegrityError):
            checkpoint["optimizer/m"][1:2, 3]
    assert_same(checkpoint.load(select="model"), {"model": STATES[3]["model"]})
    assert_same(ckptfmt.open(disk)[2].load(), STATES[2])


@pytest.mark.parametrize("how", ["vanished", "one byte more", "cut to 0", "cut to 9", "twice"])
def test_latest_sees_missing_and_short_data_files(
    disk: MemoryBackend, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = data_key(disk, 3, "optimizer")
    if how == "vanished":
        disk.delete(key)
    else:
        put(disk, key, dict(damages(disk.read(key), b""))[how])

    store = ckptfmt.open(disk)
    assert store.latest().number == 2
    assert key in caplog.text

    saved = store.save(STATES[4])
    assert saved.number == 4
    assert_same(ckptfmt.open(disk).latest().load(), STATES[4])
    assert store.collect().blocked == ()
    store.delete(3)
    assert_same(store[2].load(), STATES[2])


@pytest.mark.parametrize("way", ["load", "mmap", "into", "slice", "verify"])
def test_a_vanished_data_file_is_named(disk: MemoryBackend, way: str) -> None:
    checkpoint = ckptfmt.open(disk)[3]
    key = data_key(disk, 3, "optimizer")
    disk.delete(key)

    if way == "verify":
        (first, *_) = checkpoint.verify().problems
        assert first.key == key
        return
    reads: dict[str, Callable[[], object]] = {
        "load": checkpoint.load,
        "mmap": lambda: checkpoint.load(mmap=True),
        "into": lambda: checkpoint.load(into=state(0)),
        "slice": lambda: checkpoint["optimizer/m"][0],
    }
    with pytest.raises(IntegrityError, match="missing") as caught:
        reads[way]()
    assert caught.value.where["file"] == key
    assert caught.value.where["path"] == "optimizer/m"


def test_into_touches_nothing_when_data_is_damaged(disk: MemoryBackend) -> None:
    """Where storage maps files, all chunks are verified before the first is copied."""
    key = data_key(disk, 3, "optimizer")
    put(disk, key, flipped(disk.read(key), 8 * len(disk.read(key)) - 1))
    target = state(0)

    with pytest.raises(IntegrityError):
        ckptfmt.open(disk)[3].load(into=target)

    assert_same(target, state(0))


def test_a_save_reuses_no_file_that_is_missing_or_has_another_length(
    disk: MemoryBackend,
) -> None:
    weights = data_key(disk, 1, "model")
    put(disk, weights, disk.read(weights)[:-1])

    ckptfmt.open(disk).save(STATES[4])

    assert_same(ckptfmt.open(disk).latest().load(), STATES[4])


# ---- annotations, leases, marker


def annotation_key(disk: MemoryBackend) -> str:
    (key,) = disk.list(layout.ANNOTATIONS)
    return key


@pytest.mark.parametrize("how", DATA_DAMAGES)
def test_a_damaged_annotation_is_not_believed(
    disk: MemoryBackend, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ckptfmt.open(disk).annotate(2, {"notes": "second"})
    key, other = sorted(disk.list(layout.ANNOTATIONS))
    put(disk, key, dict(damages(disk.read(key), disk.read(other)))[how])
    store = ckptfmt.open(disk)

    found = store[1]
    assert dict(found.notes) == {}
    assert dict(found.metrics) == {"loss": 1.0}
    assert key in caplog.text
    assert store[2].notes == {"notes": "second"}
    assert_same(found.load(), STATES[1])
    with pytest.raises(UsageError, match="pinned"):
        store.delete(1)  # the record may have said so
    resumed(disk, last=1).save(STATES[4])
    assert [c.number for c in ckptfmt.open(disk)] == [1, 4]


@pytest.mark.parametrize("how", DATA_DAMAGES)
def test_a_damaged_lease_stops_deletion_until_it_is_broken(
    disk: MemoryBackend, how: str
) -> None:
    now = [1_000_000.0]
    disk._clock = lambda: now[0]
    lease = Intent(kind="save", save="a" * 24, number=4, reuse=(data_key(disk, 1, "model"),))
    other = Intent(kind="save", save="b" * 24, number=2).encode()
    disk.create(layout.intent_key("a" * 24), dict(damages(lease.encode(), other))[how])
    mine = f"data/{'a' * 24}-model-0.safetensors"
    disk.create(mine, b"being written")

    assert ckptfmt.open(disk).delete(3).files == ()
    assert ckptfmt.open(disk).collect().files == ()
    assert any("lease" in reason for reason in ckptfmt.open(disk).collect().blocked)
    assert mine in disk.list(layout.DATA)
    assert_same(ckptfmt.open(disk).latest().load(), STATES[2])

    ckptfmt.open(disk).collect(break_lease=True)
    assert mine in disk.list(layout.DATA), "its owner may still be able to commit"
    now[0] += FENCE_SECONDS + 1
    ckptfmt.open(disk).collect(break_lease=True)
    assert disk.list(layout.INTENTS) == {}
    assert mine not in disk.list(layout.DATA)
    assert_same(ckptfmt.open(disk)[2].load(), STATES[2])


MARKERS = {
    "empty": b"",
    "text": b"hello",
    "list": b"[1]",
    "other": b'{"format": "zarr"}',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "null": b"null",
    "number": b'{"format": 1, "version": 1}',
    "no version": b'{"format": "ckptfmt"}',
    "version null": b'{"format": "ckptfmt", "version": null}',
    "version true": b'{"format": "ckptfmt", "version": true}',
    "version list": b'{"format": "ckptfmt", "version": [1]}',
}


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_a_folder_that_is_something_else_is_refused(disk: MemoryBackend, marker: bytes) -> None:
    put(disk, layout.MARKER, marker)

    with pytest.raises(FormatError) as caught:
        ckptfmt.open(disk)

    assert not isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize("version", [0, 2, "2", "1-dev2"])
def test_a_store_of_another_version_is_unsupported(
    disk: MemoryBackend, version: object
) -> None:
    put(disk, layout.MARKER, json.dumps({"format": "ckptfmt", "version": version}).encode())

    with pytest.raises(UnsupportedError):
        ckptfmt.open(disk)


def test_a_store_without_marker_is_read_and_written(disk: MemoryBackend) -> None:
    disk.delete(layout.MARKER)
    store = ckptfmt.open(disk)

    assert_same(store.latest().load(), STATES[3])
    store.save(STATES[4])
    assert layout.MARKER in disk.list("")


# ---- every single bit


def test_every_flipped_bit_is_detected_or_harmless(disk: MemoryBackend, soak: bool) -> None:
    """No flip of one bit in any file of a store leads to another state, anywhere.

    Harmless are: the text of the marker, the names in the header of a data file (our readers
    do not use them; `verify` finds it), and the zero bytes that pad it.
    """
    expected = {number: STATES[number] for number in (1, 2, 3)}
    expected_notes = {1: {"notes": "first"}, 2: {}, 3: {}}
    keys = [key for name in ("", "data", "manifests", "annotations") for key in disk.list(name)]
    rng = random.Random(0)
    seen = 0
    for key in keys:
        data = disk.read(key)
        bits: Any = range(8 * len(data))
        if not soak and len(bits) > 250:
            bits = sorted(rng.sample(bits, 250))
        for bit in bits:
            put(disk, key, flipped(data, bit))
            seen += 1
            for number in expected:
                check_true_or_refused(disk, key, number, expected[number], expected_notes)
        put(disk, key, data)
    assert seen > 2000


def check_true_or_refused(
    disk: MemoryBackend, key: str, number: int, expected: State, notes: dict[int, Any]
) -> None:
    try:
        checkpoint = ckptfmt.open(disk, threads=1)[number]
        loaded = checkpoint.load()
        report = checkpoint.verify()
        found = dict(checkpoint.notes)
    except FormatError:
        return
    assert difference(loaded, expected) is None
    assert checkpoint.metrics["loss"] == 1 / number
    assert found in ({}, notes[number])
    mine = {file.key for file in checkpoint.manifest.tables.files}
    assert report.ok == (key not in mine), key
