"""Parts of a manifest that stay packed until they are asked for, and shapes in columns."""

from __future__ import annotations

import numpy as np
import pytest

from ckptfmt.errors import FormatError
from ckptfmt.format import _msgpack, columns
from ckptfmt.format._msgpack import Packed


def test_a_packed_value_is_decoded_when_asked_for_and_goes_back_as_it_was() -> None:
    data = _msgpack.pack({"a": 1, "tree": [0, ["x"], [None]], "b": [2]})

    fields = _msgpack.unpack_fields(data, "$", {"tree"})

    assert isinstance(fields["tree"], Packed)
    assert {**fields, "tree": _msgpack.unpack(fields["tree"], "$.tree")} == {
        "a": 1,
        "tree": [0, ["x"], [None]],
        "b": [2],
    }
    assert _msgpack.pack_fields(fields) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93\x01\x02\x03",  # no map
        b"\x81\xa1a",  # cut short
        b"\x81\xa4tree\x92\x01",  # cut short inside what stays packed
        b"\x81\xa4tree\xc1",  # not msgpack
        b"\x81\xa4tree\xdb\xff\xff\xff\xff",  # a length that lies
        b"\x81\xa4tree" + b"\x91" * 5000 + b"\x01",  # nested too deep
        b"\x81\xa1a\x01\x02",  # bytes after the map
        b"\x82\xa4tree\x01\xa4tree\x02",  # one key twice
        b"\x81\x01\x02",  # a key that is no str
        b"\x81\xc4\x04tree\x02",
        b"\x81\x91\x01\x02",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_fields_are_refused_as_a_whole_value_would_be(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        _msgpack.unpack_fields(data, "$", {"tree"})

    assert caught.value.code == "format"


def test_what_is_wrong_inside_a_packed_value_is_refused_when_it_is_asked_for() -> None:
    fields = _msgpack.unpack_fields(b"\x81\xa4tree\xa1\xff", "$", {"tree"})  # not UTF-8

    with pytest.raises(FormatError, match="not a msgpack value"):
        _msgpack.unpack(fields["tree"], "$.tree")


@pytest.mark.parametrize(
    "shapes", [[], [()], [(), ()], [(3, 4), (), (5,)], [(), (2, 0, 7)], [(2**55,), ()]]
)
def test_elements_of_shapes(shapes: list[tuple[int, ...]]) -> None:
    extents = columns.int64([n for shape in shapes for n in shape])
    starts = columns.starts(columns.int64([len(shape) for shape in shapes]))

    found = columns.products(extents, starts, "$")

    assert found.tolist() == [int(np.prod(shape, dtype=object)) for shape in shapes]


@pytest.mark.parametrize("shape", [(2**56,), (2**30, 2**30), (0, 2**60)])
def test_absurd_shapes(shape: tuple[int, ...]) -> None:
    starts = columns.starts(columns.int64([0, len(shape), 0]))

    with pytest.raises(FormatError, match="absurd shape"):
        columns.products(columns.int64(shape), starts, "$")
