"""The codec that sorts bytes: any bytes come back, lies cost nothing (spec §7.1.5)."""

from __future__ import annotations

import pathlib
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptfmt
from ckptfmt.errors import FormatError, IntegrityError, UsageError
from ckptfmt.format import codec, planes, zstd


def back(stored: bytes, nbytes: int) -> bytes:
    target = bytearray(nbytes)
    planes.decode_into(stored, memoryview(target), path="w")
    return bytes(target)


@given(
    width=st.integers(1, 16),
    count=st.integers(1, 300),
    runs=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_items_come_back(width: int, count: int, runs: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    high = 2 if runs else 256
    data = rng.integers(0, high, width * count, np.uint8).tobytes()

    assert back(planes.encode(data, width), len(data)) == data


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_blocks_meet_without_a_gap(more: int) -> None:
    data = np.arange(2 * planes.BLOCK_ITEMS + more, dtype=np.uint32).tobytes()

    assert back(planes.encode(data, 4), len(data)) == data


def test_noise_stays_raw_and_the_rest_shrinks() -> None:
    weights = np.random.default_rng(0).standard_normal(1 << 20, np.float32)

    stored = planes.encode(weights.tobytes(), 4)

    lengths = struct.unpack_from("<B4Q", stored)[1:]
    assert lengths[:3] == (1 << 20,) * 3
    assert lengths[3] < 0.5 * (1 << 20)


def test_a_frame_as_long_as_its_plane_is_not_taken_for_a_raw_one() -> None:
    made = (bytes(range(n)) + bytes(m) for n in range(1, 60) for m in range(60))
    even = [plane for plane in made if len(zstd.compress(plane)) == len(plane)]

    assert even
    for plane in even:
        assert back(planes.encode(plane, 1), len(plane)) == plane


def test_a_plane_that_only_its_middle_makes_hopeless_is_still_right() -> None:
    data = np.zeros((1 << 19, 2), np.uint8)
    data[1 << 18 : (1 << 18) + (1 << 17)] = np.random.default_rng(0).integers(
        0, 256, (1 << 17, 2), np.uint8
    )

    assert back(planes.encode(data.tobytes(), 2), data.nbytes) == data.tobytes()


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        (b"", FormatError),
        (b"\x00", FormatError),
        (b"\x11" + bytes(200), FormatError),
        (struct.pack("<B3Q", 3, 2, 2, 2) + bytes(6), FormatError),
        (struct.pack("<B4Q", 4, 2, 2, 2, 3) + bytes(9), FormatError),
        (struct.pack("<B4Q", 4, 2, 2, 2, 2) + bytes(7), FormatError),
        (struct.pack("<B4Q", 4, 2, 2, 2, 2) + bytes(9), FormatError),
        (struct.pack("<B4Q", 4, 2, 2, 2, 1) + bytes(7), IntegrityError),
        (struct.pack("<B4Q", 4, 2**64 - 1, 2, 2, 5) + bytes(8), FormatError),
    ],
)
def test_what_cannot_be_planes_is_refused(stored: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="path='w'"):
        back(stored, 8)


def test_no_dtype_has_items_of_17_bytes() -> None:
    with pytest.raises(FormatError, match="not byte planes"):
        back(struct.pack("<B17Q", 17, *(1,) * 17) + bytes(17), 17)


def test_a_frame_that_lies_costs_no_memory() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 2**31) + b"\x01\x00\x00"
    stored = struct.pack("<B2Q", 2, 100, len(bomb)) + bytes(100) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="another length"):
            back(stored, 200)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_sample_decides() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(300_000).astype(np.float32)
    noise = rng.integers(0, 256, 1_200_000, np.uint8)
    text = np.tile(np.arange(4, dtype=np.uint8), 300_000)

    assert codec.suited(weights.data.cast("B"), width=4) == codec.PLANES
    assert codec.suited(noise.data, width=4) == codec.RAW
    assert codec.suited(text.data, width=4) == codec.ZSTD
    assert codec.suited(text.data, width=1) == codec.ZSTD
    assert codec.suited(b"abc", width=1) == codec.RAW


STATE = {
    "model": {
        "f32": np.random.default_rng(1).standard_normal((500, 300), np.float32),
        "bf16": np.linspace(-1, 1, 50_000, dtype=np.float32).astype(ml_dtypes.bfloat16),
        "c128": np.exp(1j * np.linspace(0, 9, 5000)),
        "noise": np.random.default_rng(2).integers(0, 256, 40_000, np.uint8),
        "bool": np.arange(5000) % 3 == 0,
        "one": np.float64(-0.0) * np.ones(()),
        "none": np.zeros((0, 3), np.int16),
        "nan": np.array([0x7FC01234, 0xFFFFFFFF, 0x80000000], np.uint32).view(np.float32),
        "swapped": np.arange(9000, dtype=">i8"),
        "turned": np.arange(60_000.0).reshape(200, 300).T,
    }
}


@pytest.mark.parametrize("name", ["planes+zstd", "auto", "zstd"])
def test_every_dtype_comes_back(tmp_path: pathlib.Path, name: str) -> None:
    with ckptfmt.open(tmp_path / "s", codec=name) as store:
        saved = store.save(STATE)
        again = store.save(STATE)
    loaded = ckptfmt.load(tmp_path / "s")["model"]

    for key, array in STATE["model"].items():
        found = loaded[key]
        assert (found.dtype.newbyteorder("="), found.shape) == (
            array.dtype.newbyteorder("="), array.shape,
        )  # fmt: skip
        assert found.tobytes() == array.astype(found.dtype).tobytes(), key
    files = saved.manifest.tables.files
    assert sum(file.nbytes for file in files) < 0.9 * sum(
        array.nbytes for array in STATE["model"].values()
    )
    assert {file.key for file in again.manifest.tables.files} == {file.key for file in files}
    assert (
        saved["model/f32"][100:200, 7].tobytes() == STATE["model"]["f32"][100:200, 7].tobytes()
    )
    assert saved.verify().ok


def test_a_manifest_names_the_feature_only_where_it_is_in_use(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(2).integers(0, 256, 40_000, np.uint8)
    with ckptfmt.open(tmp_path / "s", codec="auto") as store:
        used = store.save({"model": {"w": STATE["model"]["f32"]}})
        unused = store.save({"model": {"w": noise}})
    ckptfmt.pack(used, tmp_path / "b.safetensors")
    packed = ckptfmt.open_checkpoint(tmp_path / "b.safetensors")

    assert used.manifest.summary.features.read == ("planes+zstd",)
    assert unused.manifest.summary.features.read == ()
    assert packed.manifest.summary.features.read == ()
    assert packed["model/w"][:].tobytes() == STATE["model"]["f32"].tobytes()


def test_an_unknown_codec_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="planes"):
        ckptfmt.open(tmp_path / "s", codec="lz4")
