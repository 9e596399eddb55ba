"""LevelDB tables: CRC-32C and Snappy against known answers, and damage."""

from __future__ import annotations

import pathlib
import random
import shutil
from typing import Any

import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate import sstable
from tests.migrate import corpus


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of CRC-32C
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_gives_known_answers(data: bytes, expected: int) -> None:
    assert sstable.crc32c(memoryview(data)) == expected


@pytest.mark.parametrize("nbytes", [16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 70_001])
def test_crc32c_in_lanes_is_that_of_one_byte_after_the_other(nbytes: int) -> None:
    data = random.Random(nbytes).randbytes(nbytes)
    plain = 0xFFFFFFFF
    for byte in data:
        plain ^= byte
        for _ in range(8):
            plain = plain >> 1 ^ (0x82F63B78 if plain & 1 else 0)

    assert sstable.crc32c(memoryview(data)) == plain ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"\x00", b""),
        (b"\x05\x10hello", b"hello"),
        (b"\x0a\x00a\x15\x01", b"aaaaaaaaaa"),  # a copy that overlaps itself
        (b"\x08\x0cabcd\x0e\x04\x00", b"abcdabcd"),
    ],
)
def test_snappy_is_unpacked(packed: bytes, plain: bytes) -> None:
    assert sstable.unsnap(memoryview(packed)) == plain


@pytest.mark.parametrize(
    "packed",
    [b"\xff\xff\xff\xff\x7f", b"\x05\x10hell", b"\x08\x01\x01", b"\x04\x10hello", b"\x09\x00a"],
)
def test_malformed_snappy_is_refused(packed: bytes) -> None:
    with pytest.raises(errors.FormatError):
        sstable.unsnap(memoryview(packed))


def test_a_flipped_bit_in_a_variable_is_found(tmp_path: pathlib.Path) -> None:
    (entry,) = [one for one in corpus.entries(corpus.OWN) if one.id == "tf-sm-counter"]
    folder = tmp_path / "variables"
    shutil.copytree(entry.folder / "variables", folder)
    (data,) = folder.glob("*.data-*")
    whole = bytearray(data.read_bytes())
    whole[-1] ^= 1
    data.write_bytes(whole)

    ((_, array),) = migrate.open(tmp_path).arrays()
    with pytest.raises(errors.IntegrityError, match="CRC"):
        np.asarray(array)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _block(rows: list[tuple[bytes, bytes]]) -> bytes:
    data = b"".join(
        b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in rows
    )
    data += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\0"
    return data + sstable.masked(sstable.crc32c(memoryview(data))).to_bytes(4, "little")


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    return b"".join(
        bytes([number << 3]) + _varint(value)
        if isinstance(value, int)
        else bytes([number << 3 | 2]) + _varint(len(value)) + value
        for number, value in fields
    )


def _partitioned(
    folder: pathlib.Path, rows: list[tuple[int, int, bytes]]
) -> np.ndarray[Any, Any]:
    """Write a variable of 300 x 2 in slices of (start, length, how the key writes both)."""
    whole = np.arange(600, dtype="<f4").reshape(300, 2)
    data, entries, extents = b"", {}, []
    for start, count, key in rows:
        part = whole[start : start + count].tobytes()
        shape = _message((2, _message((1, count))), (2, _message((1, 2))))
        crc = sstable.masked(sstable.crc32c(memoryview(part)))
        entries[b"\0w\0\1\1\2" + key + b"\x80\x7f"] = (
            _message((1, 1), (2, shape), (4, len(data)), (5, len(part)))
            + bytes([6 << 3 | 5]) + crc.to_bytes(4, "little")
        )  # fmt: skip
        data += part
        extents.append(_message((1, _message((1, start), (2, count))), (1, b"")))
    shape = _message((2, _message((1, 300))), (2, _message((1, 2))))
    entries[b"w"] = _message((1, 1), (2, shape), *((7, extent) for extent in reversed(extents)))
    entries[b""] = _message((1, 1))
    block = _block(sorted(entries.items()))
    index = _block([(b"x", _varint(0) + _varint(len(block) - 5))])
    handles = _varint(0) + _varint(0) + _varint(len(block)) + _varint(len(index) - 5)
    footer = handles.ljust(40, b"\0") + sstable.MAGIC
    (folder / "c.index").write_bytes(block + index + footer)
    (folder / "c.data-00000-of-00001").write_bytes(data)
    return whole


# As TensorFlow's ordered code writes numbers: one byte below 64, two below 8192.
SLICES = [
    (0, 100, b"\x80\xc0\x64"),
    (100, 50, b"\xc0\x64\xb2"),
    (150, 150, b"\xc0\x96\xc0\x96"),
]
TWICE = [*SLICES[:2], (100, 50, b"\xd0\x64\xb2")]


def test_slices_of_a_partitioned_variable_are_one_array(tmp_path: pathlib.Path) -> None:
    whole = _partitioned(tmp_path, SLICES)

    found = dict(migrate.open(tmp_path / "c").arrays())

    assert found.keys() == {("w",)}
    assert np.asarray(found["w",]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("rows", [SLICES[:2], TWICE])
def test_slices_that_do_not_make_up_the_variable_are_refused(
    rows: list[tuple[int, int, bytes]], tmp_path: pathlib.Path
) -> None:
    _partitioned(tmp_path, rows)

    with pytest.raises(errors.FormatError, match="do not cover"):
        migrate.open(tmp_path / "c")
