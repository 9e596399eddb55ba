"""Uploads in parts that dead writers began: all of them are found, and ended in time."""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import Any, cast

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import Backend, MemoryBackend, Upload, Uploads
from ckptfmt.backends._unfinished import uploads
from ckptfmt.backends.cached import CachedBackend
from ckptfmt.errors import BackendError, NotFoundError

THEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DEAD = f"data/{'e' * 24}-model-0.safetensors"
STATE = {"model": {"w": np.arange(3.0)}}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_pages_are_read(size: int) -> None:
    every = [{"Key": f"run/data/{n}", "UploadId": f"u{n}", "Initiated": THEN} for n in range(5)]

    async def call(name: str, **asked: str) -> dict[str, Any]:
        assert name == "list_multipart_uploads"
        assert (asked["Bucket"], asked["Prefix"]) == ("b", "run/data/")
        at = int(asked.get("UploadIdMarker", "u-1")[1:]) + 1
        page = every[at : at + size]
        more = at + size < len(every)
        last = {"NextKeyMarker": page[-1]["Key"], "NextUploadIdMarker": page[-1]["UploadId"]}
        return {"Uploads": page, "IsTruncated": more, **(last if more else {})}

    found = asyncio.run(uploads(call, "b", "run/data"))

    assert found == [(f"b/run/data/{n}", f"u{n}", THEN) for n in range(5)]


class Bucket:
    """A backend in memory with uploads that somebody began."""

    def __init__(self, *keys: str, refuses: str = "") -> None:
        self.inner = MemoryBackend()
        self.begun = {key: Upload(key=key, token=key, began=THEN.timestamp()) for key in keys}
        self.refuses = refuses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def uploads(self, prefix: str) -> list[Upload]:
        if self.refuses == "list":
            raise BackendError("storage failed", error="PermissionError")
        return [one for one in self.begun.values() if one.key.startswith(f"{prefix}/")]

    def end(self, upload: Upload) -> None:
        if self.refuses == "end":
            raise BackendError("storage failed", error="PermissionError")
        if self.begun.pop(upload.key, None) is None:
            raise NotFoundError("no such upload", key=upload.key)


def opened(bucket: Bucket) -> ckptfmt.Store:
    return ckptfmt.open(cast(Backend, bucket), threads=1)


def test_collect_ends_what_nobody_needs_and_tells_it() -> None:
    store = opened(bucket := Bucket(DEAD, "data/of-nobody-we-know"))
    store.save(STATE)
    (own,) = store.latest().manifest.tables.files
    bucket.begun[own.key] = Upload(key=own.key, token="t", began=THEN.timestamp())

    shown = {one.key: one.reason for one in store.leftovers()}
    dry = store.collect(dry_run=True)
    young = store.collect(older_than_seconds=1e10)
    done = store.collect()
    again = store.collect()

    assert shown[DEAD] == "parts of an upload of nobody in flight"
    assert (dry.uploads, young.uploads, done.uploads, again.uploads) == (
        (DEAD,),
        (),
        (DEAD,),
        (),
    )
    assert set(bucket.begun) == {"data/of-nobody-we-know", own.key}  # a checkpoint has that key


def test_an_upload_of_a_save_in_flight_stays() -> None:
    store = opened(bucket := Bucket(DEAD))
    store.save(STATE)
    other = opened(bucket)._saving.upkeep.leases
    other.save("e" * 24, number=2, base=None, reuse=())

    blocked = store.collect()

    assert blocked.uploads == ()
    assert set(bucket.begun) == {DEAD}


@pytest.mark.parametrize("what", ["list", "end"])
def test_a_refusal_stops_nothing_else(what: str, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(bucket := Bucket(DEAD, refuses=what))
    store.save(STATE)
    bucket.inner.write(DEAD.replace("-0.", "-1."), [b"junk"], nbytes=4)

    with caplog.at_level(logging.INFO, "ckptfmt"):
        done = store.collect()

    assert done.uploads == ()
    assert done.nbytes == 4
    assert ("parts of uploads is not known" if what == "list" else DEAD) in caplog.text


def test_a_cache_in_front_passes_on(tmp_path: Any) -> None:
    bucket = Bucket(DEAD)
    cached = CachedBackend(cast(Backend, bucket), tmp_path, max_nbytes=2**20)
    plain = CachedBackend(MemoryBackend(), tmp_path, max_nbytes=2**20)

    (found,) = cached.uploads("data")
    cached.end(found)

    assert isinstance(cached, Uploads)
    assert bucket.begun == {}
    assert plain.uploads("data") == []
