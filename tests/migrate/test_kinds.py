"""Formats told by their bytes, as small files built here: what is kept, what is refused."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard

from ckptfmt import errors, migrate
from ckptfmt.migrate import ocdbt, sstable, wire, zarr
from ckptfmt.migrate.files import Folder
from tests.migrate import corpus


def _arrays(source: pathlib.Path) -> dict[tuple[str | int, ...], np.ndarray[Any, Any]]:
    return {path: np.asarray(array) for path, array in migrate.open(source).arrays()}


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3]) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# ---- ONNX


def _onnx(location: str) -> bytes:
    pairs = {"location": location, "offset": "4", "length": "8"}
    external = b"".join(
        _field(13, _field(1, k.encode()) + _field(2, v.encode())) for k, v in pairs.items()
    )
    tensor = _field(1, 2) + _field(2, 1) + _field(8, b"w") + external + _field(14, 1)
    return _field(1, 8) + _field(2, b"tool") + _field(7, _field(5, tensor)) + _field(8, b"")


def test_onnx_data_beside_the_model_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_onnx("w.bin"))
    (tmp_path / "w.bin").write_bytes(bytes(4) + np.array([1, 2], "<f4").tobytes())

    assert _arrays(tmp_path / "m.onnx")["model", "w"].tolist() == [1, 2]


def _listed(kind: int, shape: tuple[int, ...], field: int, data: bytes) -> bytes:
    """Return a model with one array, whose values stand in a packed field."""
    sizes = b"".join(_field(1, n) for n in shape)
    tensor = sizes + _field(2, kind) + _field(8, b"w") + _field(field, data)
    return _field(1, 8) + _field(2, b"tool") + _field(7, _field(5, tensor)) + _field(8, b"")


@pytest.mark.parametrize("block", [10, 11, 64, 2**16])
def test_packed_integers_come_bit_by_bit(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_BLOCK", block)
    rng = np.random.default_rng(3)
    values = [0, 1, 127, 128, 2**63, 2**64 - 1]
    values += [int(rng.integers(0, 2**63)) >> int(rng.integers(63)) for _ in range(500)]
    data = memoryview(b"".join(map(_varint, values)))

    assert [int(n) for part in wire.packed(data) for n in part] == values
    assert wire.count_packed(data) == len(values)


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x01\xff", b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\0"]
)
def test_packed_integers_without_an_end_are_refused(data: bytes) -> None:
    with pytest.raises(errors.FormatError):
        list(wire.packed(memoryview(data)))


@pytest.mark.parametrize(
    ("kind", "field", "dtype"),
    [(6, 5, "<i4"), (5, 5, "<i2"), (3, 5, "i1"), (2, 5, "u1"), (7, 7, "<i8"), (13, 11, "<u8")],
)
def test_onnx_values_in_a_field_of_numbers(
    kind: int, field: int, dtype: str, tmp_path: pathlib.Path
) -> None:
    info = np.iinfo(dtype)
    values = np.array([[info.min, -1 if info.min else 1, 0], [1, 2, info.max]], dtype)
    data = b"".join(_varint(int(n) % 2**64) for n in values.reshape(-1))
    (tmp_path / "m.onnx").write_bytes(_listed(kind, (2, 3), field, data))

    found = _arrays(tmp_path / "m.onnx")["model", "w"]

    assert found.dtype == np.dtype(dtype)
    assert found.tobytes() == values.tobytes()


def test_onnx_numbers_take_the_memory_of_their_array(tmp_path: pathlib.Path) -> None:
    count = 2**22
    (tmp_path / "m.onnx").write_bytes(_listed(6, (count,), 5, b"\x07" * count))
    migrate.open(tmp_path / "m.onnx")  # what is imported does not count
    tracemalloc.start()
    try:
        ((_, array),) = migrate.open(tmp_path / "m.onnx").arrays()
        _, opened = tracemalloc.get_traced_memory()
        whole = np.asarray(array)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (whole == 7).all()
    assert opened < 2**22
    assert read < whole.nbytes + 2**23  # and what a block is decoded in


def test_onnx_nodes_may_share_a_name(tmp_path: pathlib.Path) -> None:
    def node(value: int) -> bytes:
        tensor = _field(1, 1) + _field(2, 6) + _field(9, struct.pack("<i", value))
        attribute = _field(1, b"table") + _field(5, tensor)
        out = _field(2, f"y{value}".encode())
        return _field(1, out + _field(3, b"same") + _field(4, b"Op") + _field(5, attribute))

    graph = node(1) + node(2) + node(3)
    (tmp_path / "m.onnx").write_bytes(_field(1, 8) + _field(7, graph) + _field(8, b""))

    found = _arrays(tmp_path / "m.onnx")

    assert {path[1]: int(array[0]) for path, array in found.items()} == {
        "same/table": 1, "same/table_2": 2, "same/table_3": 3,
    }  # fmt: skip
    notes = migrate.open(tmp_path / "m.onnx").report.notes
    assert [note.path for note in notes if "called" in note.text] == [
        "same/table_2", "same/table_3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link", "hard"]
)
def test_onnx_data_never_leaves_the_folder(location: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "w.bin")
    os.link(tmp_path / "w.bin", folder / "hard")
    (folder / "m.onnx").write_bytes(_onnx(location))

    with pytest.raises(errors.FormatError):
        migrate.open(folder / "m.onnx")


# ---- MXNet


def _mxnet(names: list[str]) -> bytes:
    dense = struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 2, 3) + struct.pack("<iii", 1, 0, 4)
    old = struct.pack("<III", 2, 1, 2) + struct.pack("<iii", 2, 0, 0)
    rows = struct.pack("<Iiiq", 0xF993FAC9, 1, 2, 1) + struct.pack("<q", 2)
    rows += (
        struct.pack("<iqq", 2, 5, 2)
        + struct.pack("<iii", 1, 0, 0)
        + struct.pack("<iiq", 6, 1, 1)
    )
    data = dense + np.arange(6, dtype="<i4").tobytes() + old + np.ones(2, "<f4").tobytes()
    data += rows + np.array([3, 4], "<f4").tobytes() + np.array([2], "<i8").tobytes()
    text = b"".join(struct.pack("<Q", len(n)) + n.encode() for n in names)
    return struct.pack("<QQQ", 0x112, 0, 3) + data + struct.pack("<Q", len(names)) + text


def test_mxnet_arrays_of_three_kinds_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.params").write_bytes(_mxnet(["arg:a", "arg:b", "arg:sparse"]))

    source = migrate.open(tmp_path / "x.params")
    found = _arrays(tmp_path / "x.params")

    assert found["arg:a",].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["arg:b",].tolist() == [[1, 1]]
    sparse = source.tree()["arg:sparse"]
    assert (sparse.cls, sparse.state["shape"]) == ("mxnet.row_sparse", [5, 2])
    assert found["arg:sparse", "__state__", "data"].tolist() == [[3, 4]]
    assert found["arg:sparse", "__state__", "indices", 0].tolist() == [2]


@pytest.mark.parametrize("names", [["a"], ["a", "a", "b"]])
def test_mxnet_names_that_do_not_fit_are_refused(
    names: list[str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "x").write_bytes(_mxnet(names))

    with pytest.raises(errors.FormatError, match="names and arrays disagree"):
        migrate.open(tmp_path / "x")


# ---- XGBoost


@pytest.mark.skipif(corpus.WHOLE is None, reason="CKPTFMT_CORPUS is not set")
def test_xgboost_binary_and_json_of_one_model_hold_the_same_trees() -> None:
    folder = pathlib.Path(corpus.WHOLE or "") / "files" / "xgb-100json"

    binary = _arrays(folder / "xgboost-1.0.0rc1.reg.bin")
    text = _arrays(folder / "xgboost-1.0.0rc1.reg.json")

    below = ("learner", "gradient_booster", "model", "trees")
    compared = 0
    for path, array in text.items():
        if path[:4] == below and path[5] in ("left_children", "right_children", "base_weights"):
            assert binary[path].tobytes() == array.tobytes(), path
            compared += 1
    assert compared == 12


# ---- OCDBT and Zarr


def _node(magic: int, body: bytes, *, packed: bool = True) -> bytes:
    body = zstandard.ZstdCompressor().compress(body) if packed else body
    head = struct.pack(">I", magic) + struct.pack("<Q", 14 + len(body) + 4)
    data = head + bytes([0, packed]) + body
    return data + struct.pack("<I", sstable.crc32c(memoryview(data)))


def _database(folder: pathlib.Path, values: dict[bytes, bytes], name: bytes = b"d/x") -> None:
    keys = sorted(values)
    leaf = bytes([0, 0]) + _varint(len(keys)) + bytes(len(keys) - 1)
    leaf += b"".join(_varint(len(k)) for k in keys) + b"".join(keys)
    leaf += b"".join(_varint(len(values[k])) for k in keys) + bytes(len(keys))
    node = _node(0x0CDB20DE, leaf + b"".join(values[k] for k in keys))
    (folder / "d").mkdir(exist_ok=True)
    (folder / "d" / "x").write_bytes(node)
    body = bytes(16) + bytes([0, 0, 0, 4, 0]) + bytes([1, len(name), 0]) + name
    body += bytes([1, 1, 0, 0, 0]) + _varint(len(node)) + _varint(len(keys)) + bytes([0, 0])
    (folder / "manifest.ocdbt").write_bytes(
        _node(0x0CDB3A2A, body + bytes(8) + bytes(1), packed=False)
    )


def _zarr(**more: Any) -> bytes:
    fields = {"zarr_format": 2, "shape": [3], "chunks": [2], "dtype": "<i4", "order": "C",
              "fill_value": 7, "compressor": None, "filters": None}  # fmt: skip
    return json.dumps({**fields, **more}).encode()


def test_a_chunk_that_is_not_stored_is_the_fill_value(tmp_path: pathlib.Path) -> None:
    _database(tmp_path, {b"w/.zarray": _zarr(), b"w/0": struct.pack("<ii", 1, 2)})

    assert _arrays(tmp_path)["w",].tolist() == [1, 2, 7]


def test_an_array_of_nothing_but_fill_values_has_a_limit(tmp_path: pathlib.Path) -> None:
    _database(tmp_path, {b"w/.zarray": _zarr(shape=[2**40], chunks=[2**30])})
    ((_, array),) = migrate.open(tmp_path).arrays()

    with pytest.raises(errors.FormatError, match="most of an array is not stored"):
        np.asarray(array)


def test_a_data_file_outside_the_folder_is_refused(tmp_path: pathlib.Path) -> None:
    _database(tmp_path, {b"w/.zarray": _zarr()}, b"../x")

    with pytest.raises(errors.FormatError, match="plain relative"):
        migrate.open(tmp_path)


def test_a_flipped_bit_in_a_node_is_found(tmp_path: pathlib.Path) -> None:
    _database(tmp_path, {b"w/.zarray": _zarr(), b"w/0": bytes(8)})
    data = bytearray((tmp_path / "d" / "x").read_bytes())
    data[20] ^= 1
    (tmp_path / "d" / "x").write_bytes(data)

    with pytest.raises(errors.IntegrityError, match="CRC"):
        ocdbt.Database(Folder(str(tmp_path)), "")


def test_shards_of_zarr_3_are_read_with_their_index() -> None:
    inner = struct.pack("<ff", 1, 2)
    index = struct.pack("<QQQQ", 0, 8, 2**64 - 1, 2**64 - 1)
    index += struct.pack("<I", sstable.crc32c(memoryview(index)))
    shard = {
        "chunk_shape": [2],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    }
    described = {
        "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": shard}],
    }  # fmt: skip
    values = {"w/zarr.json": json.dumps(described).encode(), "w/c/0": inner + index}
    get = {key: memoryview(data) for key, data in values.items()}.get

    array = zarr.array("w", get, 100)

    assert array is not None
    assert str(array.load().tolist()) == "[1.0, 2.0, nan, nan]"


# ---- Flax


def test_a_truncated_flax_file_says_so(tmp_path: pathlib.Path) -> None:
    raw = np.arange(100, dtype="<f4").tobytes()
    inner = b"\x93\x91\x64\xa7float32\xc5" + struct.pack(">H", len(raw)) + raw
    whole = b"\x81\xa1w\xc8" + struct.pack(">Hb", len(inner), 1) + inner
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "cut").write_bytes(whole[:-1])

    assert _arrays(tmp_path / "whole")["w",].tobytes() == raw
    with pytest.raises(errors.FormatError, match="file ends inside"):
        migrate.open(tmp_path / "cut")


def test_an_empty_part_of_one_orbax_folder_is_none_of_another(tmp_path: pathlib.Path) -> None:
    def row(kind: str, *keys: str) -> dict[str, Any]:
        path = [{"key": key, "key_type": 2} for key in keys]
        return {"key_metadata": path, "value_metadata": {"value_type": kind}}

    def folder(name: str, rows: list[dict[str, Any]], keys: list[bytes]) -> pathlib.Path:
        (tmp_path / name).mkdir()
        _database(tmp_path / name, {key + b"/.zarray": _zarr() for key in keys})
        tree = {"tree_metadata": {str(n): one for n, one in enumerate(rows)}}
        (tmp_path / name / "_METADATA").write_text(json.dumps(tree))
        return tmp_path / name

    other = [row("Dict", "a"), row("jax.Array", "a", "b")]
    migrate.open(folder("other", other, [b"a.b"])).tree()
    found = migrate.open(
        folder("this", [row("Dict", "a"), row("jax.Array", "x")], [b"x"])
    ).tree()

    assert found["a"] == {}


def test_nodes_that_unfold_without_end_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _database(tmp_path, {b"a": bytes(60_000), b"b": bytes(60_000)})
    assert (tmp_path / "d" / "x").stat().st_size < 1000
    ocdbt.Database(Folder(str(tmp_path)), "")

    monkeypatch.setattr(ocdbt, "MAX_NODES_NBYTES", 100_000)
    with pytest.raises(errors.FormatError, match="too large"):
        ocdbt.Database(Folder(str(tmp_path)), "")


def _paddle(arrays: list[np.ndarray[Any, Any]]) -> bytes:
    found = b""
    for array in arrays:
        described = _field(1, 5) + b"".join(_field(2, n) for n in array.shape)
        found += bytes(16) + struct.pack("<I", len(described)) + described
        found += array.astype("<f4").tobytes()
    return found


def _program(**shapes: tuple[int, ...]) -> bytes:
    found = b""
    for name, shape in shapes.items():
        described = _field(1, 5) + b"".join(_field(2, n) for n in shape)
        kind = _field(1, 7) + _field(3, _field(1, described))
        found += _field(3, _field(1, name.encode()) + _field(2, kind) + _field(3, 1))
    return _field(1, found)


def test_paddle_names_are_those_of_the_own_program(tmp_path: pathlib.Path) -> None:
    data = _paddle([np.ones((2, 2)), np.zeros((2, 2))])
    (tmp_path / "b.pdiparams").write_bytes(data)
    (tmp_path / "c.params").write_bytes(data)
    (tmp_path / "a.pdmodel").write_bytes(_program(a1=(2, 2), a2=(2, 2)))
    (tmp_path / "b.pdmodel").write_bytes(_program(b1=(2, 2), b2=(2, 2)))

    assert list(migrate.open(tmp_path / "b.pdiparams").tree()) == ["b1", "b2"]
    assert isinstance(migrate.open(tmp_path / "c.params").tree(), list)  # whose, nobody tells
    (tmp_path / "b.pdmodel").write_bytes(_program(b1=(2, 2)))
    assert isinstance(migrate.open(tmp_path / "b.pdiparams").tree(), list)


def test_chunks_that_unfold_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = zstandard.ZstdCompressor().compress(bytes(4 * 10_000))
    head = _zarr(shape=[20_000], chunks=[10_000], compressor={"id": "zstd"})
    values = {"a/.zarray": head, "a/0": chunk, "a/1": chunk}
    found = zarr.array("a", lambda key: memoryview(values[key]), 80_000)
    assert found is not None
    assert found.load().shape == (20_000,)

    found = zarr.array("a", lambda key: memoryview(values[key]), 79_999)
    assert found is not None
    with pytest.raises(errors.FormatError, match="unpacks to too much"):
        found.load()


def test_arrays_of_gguf_share_no_bytes(tmp_path: pathlib.Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 20, 0)
    for n in range(20):
        head += struct.pack("<Q2sIQIQ", 2, b"%02d" % n, 1, 1000, 24, 0)
    head += bytes(-len(head) % 32)
    (tmp_path / "x.gguf").write_bytes(head + bytes(1000))

    with pytest.raises(errors.FormatError, match="share bytes"):
        migrate.open(tmp_path / "x.gguf").tree()


def test_onnx_functions_that_are_left_out_are_noted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "x.onnx").write_bytes(_onnx("w.bin") + _field(25, _field(1, b"gelu")))

    notes = migrate.open(tmp_path / "x.onnx").report.notes
    assert any("1 functions" in note.text for note in notes)


def test_a_number_that_no_float_of_32_bits_holds_is_refused(tmp_path: pathlib.Path) -> None:
    trees = {"trees": [{"base_weights": [1e300]}]}
    model = {"learner": {"gradient_booster": {"model": trees}}}
    (tmp_path / "x").write_text(json.dumps(model))

    with pytest.raises(errors.FormatError, match="beyond 32 bits"):
        migrate.open(tmp_path / "x")
