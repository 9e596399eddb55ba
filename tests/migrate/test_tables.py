"""LevelDB tables: CRC-32C and Snappy against known answers, and damage."""

from __future__ import annotations

import pathlib
import random
import shutil

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
