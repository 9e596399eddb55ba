"""A store of an older version is read: a synthetic one, which named two fields otherwise."""

from __future__ import annotations

import hashlib
import pathlib
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard

import ckptfmt
from ckptfmt import errors
from ckptfmt.format import frame, upgrade

OLD = 0


def _aged(data: bytes) -> bytes:
    """Return a manifest as the synthetic version 0 would have written it."""
    header = frame.decode_header(data)
    summary = msgpack.unpackb(frame.summary_of(header, data), strict_map_key=False)
    body = msgpack.unpackb(frame.body_of(header, data), strict_map_key=False)
    summary["created"] = summary.pop("time")
    body["piece_nbytes"] = body.pop("chunk_nbytes")
    raw = [msgpack.packb(part) for part in (summary, body)]
    stored = zstandard.ZstdCompressor().compress(raw[1])
    digests = [hashlib.sha256(part).digest() for part in (raw[0], stored)]
    head = struct.pack(
        "<8sHBB4sQQQ8s16s32s32s", frame.MAGIC, OLD, frame.CHECKPOINT, 1, bytes(4),
        len(raw[0]), len(stored), len(raw[1]), bytes(8), bytes(16), *digests,
    )  # fmt: skip
    check = hashlib.sha256(head).digest()[:8]
    return head[:40] + check + head[48:] + raw[0] + stored


def _renamed(old: str, new: str) -> Any:
    return lambda fields: {new if key == old else key: value for key, value in fields.items()}


STEP = upgrade.Step(
    summary=_renamed("created", "time"), body=_renamed("piece_nbytes", "chunk_nbytes")
)


@pytest.fixture
def aged(tmp_path: pathlib.Path) -> pathlib.Path:
    with ckptfmt.open(tmp_path / "run") as store:
        store.save({"model": {"w": np.arange(12.0)}}, counters={"seen": 5})
    (manifest,) = (tmp_path / "run" / "manifests").iterdir()
    manifest.write_bytes(_aged(manifest.read_bytes()))
    return tmp_path / "run"


def test_an_older_version_is_read_and_extended(
    aged: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(upgrade.STEPS, OLD, STEP)
    before = (aged / "manifests" / "0000000001-000.ckpt").read_bytes()

    with ckptfmt.open(aged) as store:
        old = store.latest()
        new = store.save({"model": {"w": np.arange(12.0)}}, counters={"seen": 6}, parent=old)

    assert old.load()["model"]["w"].tobytes() == np.arange(12.0).tobytes()
    assert old.counters == {"seen": 5}
    assert (new.number, new.parent) == (2, (1, old.id))
    assert (aged / "manifests" / "0000000001-000.ckpt").read_bytes() == before
    assert [header.version for header in _headers(aged)] == [OLD, 1]


def test_a_version_without_steps_is_refused(aged: pathlib.Path) -> None:
    with ckptfmt.open(aged) as store, pytest.raises(errors.UnsupportedError, match="version 0"):
        store.latest()


def test_steps_must_lead_to_the_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upgrade.STEPS, OLD, STEP)

    assert upgrade.reads(OLD)
    assert not upgrade.reads(2)
    monkeypatch.setattr(upgrade, "FORMAT_VERSION", 2)  # a step from 1 is missing
    assert not upgrade.reads(OLD)


def _headers(folder: pathlib.Path) -> list[frame.Header]:
    files = sorted((folder / "manifests").iterdir())
    return [frame.decode_header(file.read_bytes()) for file in files]
