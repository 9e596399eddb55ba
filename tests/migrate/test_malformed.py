"""Sources that make no sense: whatever Python or NumPy say to them, the error is ours."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, Final

import msgpack
import numpy as np
import pytest

from ckptfmt import errors
from ckptfmt.migrate import wire
from ckptfmt.migrate.boxes import Slice, joined
from ckptfmt.migrate.source import Lazy, check_shape
from tests.migrate.test_hostile import everything

PICKLE: Final = b"\x80\x02"
ARRAY: Final = pickle.dumps(np.arange(3.0), 2)[2:-1]  # so that it passes for a checkpoint


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def safetensors(shape: list[int], nbytes: int = 0) -> bytes:
    row = {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}
    header = json.dumps({"a": row}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(nbytes)


def npy(descr: str, shape: str, nbytes: int = 0) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(nbytes)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def pt(call: bytes, storage: str = "Float", nbytes: int = 16, order: str = "little") -> bytes:
    """Return an archive of PyTorch: `call` finds a storage in the memo at 9."""
    count = nbytes // {"Float": 4, "Bool": 1}[storage]
    stored = b"(" + text("storage") + f"ctorch\n{storage}Storage\n".encode() + text("0")
    stored += text("cpu") + integer(count) + b"tQq\t"
    data = {"a/data.pkl": PICKLE + b"](" + stored + call + b"e.", "a/data/0": bytes(nbytes)}
    return zipped({**data, "a/byteorder": order.encode()})


def tensor(size: list[int], stride: list[int], rest: bytes = b"") -> bytes:
    sizes, strides = (b"(" + b"".join(map(integer, row)) + b"t" for row in (size, stride))
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(h\tK\x00"
    return head + sizes + strides + b"\x89N" + rest + b"tR"


def old_script(module: object) -> bytes:
    return zipped({"a/model.json": json.dumps({"tensors": [], "mainModule": module}).encode()})


def flax(shape: list[int], name: str) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, name, b"abcd")))
    return bytes(msgpack.packb({"a": array}))


def long_names() -> bytes:
    block = tarfile.TarInfo("././@LongLink")
    block.type, block.size = tarfile.GNUTYPE_LONGNAME, 2
    return (block.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 1500


DTYPE: Final = b"cnumpy\ndtype\n("
SELF: Final = (
    DTYPE + text("V4") + b"K\x00K\x01tRq\x00(K\x03" + text("|") + b"N(" + text("a")
    + b"t}" + text("a") + b"h\x00K\x00\x86sK\x04K\x01K\x00tb"
)  # fmt: skip
SCALAR: Final = b"cnumpy.core.multiarray\nscalar\n"
VARIABLE: Final = b"ctorch.autograd.variable\nVariable\n"

SOURCES: Final[dict[str, Callable[[], bytes]]] = {
    "safetensors: more axes than NumPy has": lambda: safetensors([1] * 65, 4),
    "safetensors: 60,000 axes": lambda: safetensors([2**60] * 60_000),
    "safetensors: empty and huge": lambda: safetensors([0, 2**62]),
    "npy: empty and huge": lambda: npy("'f4'", f"(0, {2**62})"),
    "npy: more axes than NumPy has": lambda: npy("'f4'", f"({'1,' * 65})", 4),
    "npy: elements of no bytes": lambda: npy("'V0'", "(3,)"),
    "npy: text of no length": lambda: npy("'S'", "(0,)"),
    "npy: an array in an array": lambda: npy("'(2,3)f4'", "(1,)", 24),
    "npy: offset beyond an address": lambda: npy(
        f"{{'names': ['a'], 'formats': ['f4'], 'offsets': [{2**70}]}}", "(1,)", 8
    ),
    "torch: empty and huge": lambda: pt(tensor([0, 2**62], [1, 1])),
    "torch: stride beyond an address": lambda: pt(tensor([1, 1], [2**70, 1])),
    "torch: odd big-endian storage": lambda: pt(
        b"ctorch._utils\n_rebuild_tensor_v3\n(h\tK\x00K\x01\x85K\x01\x85\x89Nctorch\nfloat32\ntR",
        "Bool", 7, "big",
    ),
    "torch: a sign of truth values": lambda: pt(
        tensor([1], [1], b"}" + text("neg") + b"\x88s"), "Bool"
    ),
    "torch: a variable whose state is itself": lambda: pt(
        VARIABLE + b")Rq\x00(h\x00\x89\x89Ntb"
    ),
    "torch: two variables that are each other": lambda: pt(
        VARIABLE + b")Rq\x00" + VARIABLE + b")Rq\x01(h\x00\x89tb0h\x00(h\x01\x89tb"
    ),
    "pickle: dtype that is no grammar": lambda: PICKLE + b"(" + ARRAY + SCALAR + DTYPE
    + text("(,)f4") + b"K\x00K\x01tRU\x04abcd\x86Rt.",
    "pickle: dtype in itself": lambda: PICKLE + b"(" + ARRAY + SCALAR + SELF
    + b"U\x04abcd\x86Rt.",
    "flax: dtype that is no grammar": lambda: flax([1], "(,)f4"),
    "flax: more axes than NumPy has": lambda: flax([1] * 65, "float32"),
    "script: parameters that are no objects": lambda: old_script({"parameters": [5]}),
    "script: no parameters": lambda: old_script({"parameters": None}),
    "script: a tensor's number is a word": lambda: old_script(
        {"parameters": [{"tensorId": "abc"}]}
    ),
    "tar: 1,500 names of names": long_names,
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_makes_no_sense_is_a_format_error(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(SOURCES[name]())

    with pytest.raises(errors.FormatError) as caught:
        everything(tmp_path / "x")

    assert not isinstance(caught.value, errors.UnsupportedError)


def test_an_index_whose_parts_are_lists_is_a_format_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"a": ["x"]}}')

    with pytest.raises(errors.FormatError):
        everything(tmp_path)


@pytest.mark.parametrize("shape", [(1,) * 65, (0, 2**63), (-1,), (True,), (2.0,), (0, 2**62)])
def test_shapes_that_no_array_has(shape: tuple[Any, ...]) -> None:
    with pytest.raises(errors.FormatError, match="no array has such a shape"):
        check_shape(shape, 4)


def test_shapes_of_real_arrays() -> None:
    assert check_shape([0, 2**40], 8) == (0, 2**40)
    assert check_shape((1,) * 64, 8) == (1,) * 64


def test_slices_with_other_axes_than_their_array() -> None:
    with pytest.raises(errors.FormatError, match="other axes"):
        joined("a", (2, 2), [Slice((0,), Lazy.of(np.zeros((2, 2))))])


def test_integers_of_protocol_buffers_have_64_bits() -> None:
    assert wire.varint(b"\xff" * 9 + b"\x01", 0) == (2**64 - 1, 10)
    with pytest.raises(errors.FormatError, match="64 bits"):
        wire.varint(b"\xff" * 9 + b"\x7f", 0)
