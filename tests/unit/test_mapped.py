"""Mapped arrays: verified when memory over a chunk is first handed out, once per store."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import IntegrityError


@pytest.fixture
def store(tmp_path: pathlib.Path) -> ckptfmt.Store:
    found = ckptfmt.open(tmp_path)
    found.save({"model": {"w": np.arange(1000.0), "b": np.ones(3, np.float32)}})
    return found


def damage(folder: pathlib.Path) -> None:
    """Flip one bit of the last element of `w`, which lies first: 1000 doubles, 3 floats."""
    (file,) = (folder / "data").iterdir()
    with file.open("r+b") as opened:
        opened.seek(-13, 2)
        byte = opened.read(1)[0]
        opened.seek(-13, 2)
        opened.write(bytes([byte ^ 1]))


def test_a_mapped_array_is_the_stored_file(store: ckptfmt.Store) -> None:
    w = np.asarray(store.latest().lazy("model/w", mmap=True))

    assert w.tobytes() == np.arange(1000.0).tobytes()
    assert not w.flags.writeable
    assert not w.flags.owndata


def test_damage_is_found_when_memory_is_first_handed_out(
    store: ckptfmt.Store, tmp_path: pathlib.Path
) -> None:
    lazy = store.latest().lazy("model/w", mmap=True)
    damage(tmp_path)

    with pytest.raises(IntegrityError, match="model/w"):
        np.asarray(lazy)
    with pytest.raises(IntegrityError, match="model/w"):
        store.latest().load(mmap=True)


def test_a_chunk_is_verified_once_per_store(
    store: ckptfmt.Store, tmp_path: pathlib.Path
) -> None:
    np.asarray(store.latest().lazy("model/w", mmap=True))
    damage(tmp_path)

    store.latest().load(mmap=True)  # remembered: the other chunk alone is digested
    np.asarray(store.latest().lazy("model/w", mmap=True))
    with pytest.raises(IntegrityError, match="model/w"):
        store.latest().load()  # bytes that are read are digested each time
    with pytest.raises(IntegrityError, match="model/w"):
        ckptfmt.open(tmp_path).latest().load(mmap=True)


def test_what_failed_is_not_remembered(store: ckptfmt.Store, tmp_path: pathlib.Path) -> None:
    damage(tmp_path)

    for _ in range(2):
        with pytest.raises(IntegrityError):
            np.asarray(store.latest().lazy("model/w", mmap=True))


def test_verify_false_hands_out_what_is_there(
    store: ckptfmt.Store, tmp_path: pathlib.Path
) -> None:
    damage(tmp_path)

    found = np.asarray(store.latest().lazy("model/w", mmap=True, verify=False))

    assert (found != np.arange(1000.0)).sum() == 1
