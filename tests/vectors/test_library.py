"""Every vector, judged by the library; and what it writes, read by others.

The independent judgement of the same vectors is in test_independent_reader.py.
"""

from __future__ import annotations

import datetime
import json
import logging
import pathlib
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import ckptfmt
from ckptfmt import dtypes
from ckptfmt.errors import CheckpointError
from ckptfmt.format import _msgpack, datafile, layout, parts, records, values
from ckptfmt.format.manifest import Manifest, decode_head
from ckptfmt.leaves import ArrayRef

HERE = pathlib.Path(__file__).parent
FOLDER = HERE.parents[1] / "spec/vectors/v1"
sys.path.insert(0, str(HERE))  # --import-mode=importlib does not

import checker  # noqa: E402
import reader  # noqa: E402

VECTORS = {f.stem: json.loads(f.read_text("utf-8")) for f in sorted(FOLDER.iterdir())}


def named(kind: str) -> pytest.MarkDecorator:
    """Parametrise a test by the vectors of one kind."""
    return pytest.mark.parametrize(
        "vector",
        [pytest.param(v, id=name) for name, v in VECTORS.items() if v["kind"] == kind],
    )


def content(vector: Mapping[str, Any]) -> bytes:
    """Return the bytes of a vector that is one file."""
    if "hex" in vector:
        return bytes.fromhex(vector["hex"])
    return b"".join(bytes.fromhex(text) * count for text, count in vector["runs"])


def refuses(vector: Mapping[str, Any], judge: Any, *arguments: Any) -> Any:
    """Return what `judge` finds in a valid vector; check the code of its error otherwise."""
    if vector["valid"]:
        return judge(*arguments)
    with pytest.raises(CheckpointError) as caught:
        judge(*arguments)
    assert caught.value.code == vector["code"], f"{vector['title']}: {caught.value}"
    return None


# --- manifests ------------------------------------------------------------------


def decoded(data: bytes) -> tuple[Any, Manifest | None, Any]:
    """Return the head of a manifest, the manifest and its tree, as far as there are any."""
    head = decode_head(data)
    if head.tombstone:
        return head, None, None
    manifest = Manifest.decode(data)
    return head, manifest, manifest.structure()


@named("manifest")
def test_manifest_vector(vector: dict[str, Any]) -> None:
    found = refuses(vector, decoded, content(vector))
    if found is None:
        return

    head, manifest, structure = found
    expect = vector["expect"]
    summary = head.summary if manifest is None else manifest.summary
    assert head.header.identity == expect["identity"]
    assert (summary.number, summary.revision, summary.id) == (
        expect["number"],
        expect["revision"],
        expect["id"],
    )
    assert head.tombstone == (expect["kind"] == "tombstone")
    if manifest is not None:
        assert typed(structure) == expect["tree"]
        assert array_rows(manifest) == expect["arrays"]
        if "metrics" in expect:
            assert dict(summary.metrics) == expect["metrics"]
            assert sorted(summary.counters) == sorted(expect["counters"])
            assert list(summary.tags) == expect["tags"]
        if "artifacts" in expect:
            assert {a.name: a.data.hex() for a in manifest.artifacts} == expect["artifacts"]


def array_rows(manifest: Manifest) -> dict[str, Any]:
    """Return the array table in the form of spec §12.3."""
    tables = manifest.tables
    return {
        tables.array(row).path: {
            "dtype": tables.array(row).dtype.name,
            "shape": list(tables.array(row).shape),
            "aliases": [path for other, path in tables.aliases if other == row],
        }
        for row in range(len(tables))
    }


def typed(value: Any) -> Any:
    """Return a structure in the JSON form of spec §12.3."""
    match value:
        case None | bool():
            return value
        case np.generic():
            name = dtypes.by_numpy(value.dtype).name
            return {"scalar": [name, value.tobytes().hex()]}
        case ArrayRef(row=row):
            return {"array": row}
        case int():
            return {"int": str(value)}
        case float():
            return {"float": struct.pack(">d", value).hex()}
        case complex():
            return {"complex": [struct.pack(">d", x).hex() for x in (value.real, value.imag)]}
        case str():
            return {"str": value}
        case bytes():
            return {"bytes": value.hex()}
        case datetime.datetime():
            return {"datetime": value.isoformat()}
        case dict():
            return {"dict": [[typed(k), typed(v)] for k, v in value.items()]}
        case list():
            return {"list": [typed(v) for v in value]}
        case tuple():
            return {"tuple": [typed(v) for v in value]}
    raise AssertionError(type(value))


# --- nodes, records, headers -----------------------------------------------------


@named("node")
def test_node_vector(vector: dict[str, Any]) -> None:
    def decode(data: bytes) -> object:
        return values.decode(_msgpack.unpack(data, "$"), arrays=vector["arrays"])

    found = refuses(vector, decode, content(vector))

    if vector["valid"]:
        assert typed(found) == vector["expect"]["tree"]
        assert _msgpack.pack(values.encode(found)) == content(vector)


def record(vector: Mapping[str, Any], decode: Any) -> Any:
    """Decode a sealed record; None where the vector is about its key, not its bytes."""
    if vector["code"] == "integrity" and "than its key" in vector["title"]:
        decode(content(vector))  # who holds the key compares: see the store vectors
        return None
    return refuses(vector, decode, content(vector))


@named("annotation")
def test_annotation_vector(vector: dict[str, Any]) -> None:
    found = record(vector, records.Annotation.decode)

    if vector["valid"]:
        payload = vector["expect"]["payload"]
        assert layout.annotation_key(found.number, found.id, found.n) == vector["key"]
        assert found.time == payload["time"]
        assert dict(found.fields) == payload["fields"]


@named("part")
def test_part_vector(vector: dict[str, Any]) -> None:
    found = record(vector, parts.Part.decode)

    if vector["valid"]:
        payload = vector["expect"]["payload"]
        assert layout.intent_key(found.save, found.rank) == vector["key"]
        assert (found.world, found.reason) == (payload["world"], payload.get("reason"))
        assert parts.Part.decode(found.encode()) == found


@named("intent")
def test_intent_vector(vector: dict[str, Any]) -> None:
    found = record(vector, records.Intent.decode)

    if vector["valid"]:
        payload = vector["expect"]["payload"]
        assert layout.intent_key(found.save) == vector["key"]
        assert (found.kind, found.ttl_seconds) == (payload["kind"], payload["ttl_seconds"])
        if found.kind != records.RETENTION:
            assert [found.number, found.revision] == [payload["number"], payload["revision"]]
            assert list(found.reuse) == payload["reuse"]
            assert (None if found.base is None else list(found.base)) == payload["base"]
        else:
            assert list(found.numbers) == payload["numbers"]


@named("datafile-header")
def test_datafile_vector(vector: dict[str, Any]) -> None:
    def parse(data: bytes) -> datafile.Header:
        n = datafile.header_nbytes(data[:8], len(data))
        return datafile.parse(data[8 : 8 + n], len(data) - 8 - n)

    found = refuses(vector, parse, content(vector))

    if vector["valid"]:
        entries = {
            e.name: [e.dtype, list(e.shape), e.offset, e.offset + e.nbytes]
            for e in found.entries.values()
        }
        assert entries == vector["expect"]["entries"]
        assert found.nbytes == vector["expect"]["header_nbytes"]


# --- bundles and stores -----------------------------------------------------------


def check_loaded(checkpoint: Any, expect: Mapping[str, Any]) -> None:
    """Compare a checkpoint with what a vector expects, bit by bit."""
    assert (checkpoint.number, checkpoint.revision, checkpoint.id, checkpoint.identity) == (
        expect["number"],
        expect["revision"],
        expect["id"],
        expect["identity"],
    )
    assert checkpoint.verify().problems == ()
    rows: dict[int, Any] = {}
    loaded = checkpoint.load()
    assert shape_of(loaded, expect["tree"], rows)
    for row, (path, wanted) in enumerate(expect["arrays"].items()):
        if path.startswith("~probe/"):
            assert row not in rows  # part of the checkpoint, not of its state
            continue
        for alias in (path, *wanted["aliases"]):
            array = np.asarray(checkpoint[alias])
            assert dtypes.by_numpy(array.dtype).name == wanted["dtype"]
            assert (list(array.shape), array.tobytes().hex()) == (
                wanted["shape"],
                wanted["hex"],
            )
        assert isinstance(rows[row], np.ndarray)
        assert rows[row].tobytes().hex() == wanted["hex"]


def shape_of(value: Any, wanted: Any, rows: dict[int, Any]) -> bool:
    """Tell whether a loaded tree is the expected one; collect its arrays by row."""
    match wanted:
        case {"array": row}:
            return rows.setdefault(row, value) is value  # tied arrays come back tied
        case {"dict": pairs}:
            same = [typed(k) for k in value] == [k for k, _ in pairs]
            children = [(child, v) for child, (_, v) in zip(value.values(), pairs, strict=True)]
        case {"list": items} | {"tuple": items}:
            same = type(value) is (list if "list" in wanted else tuple)
            children = list(zip(value, items, strict=True))
        case _:
            return bool(typed(value) == wanted)
    return same and all(shape_of(child, v, rows) for child, v in children)


@named("bundle")
def test_bundle_vector(vector: dict[str, Any], tmp_path: pathlib.Path) -> None:
    place = tmp_path / "x.safetensors"
    place.write_bytes(content(vector))

    def load(address: pathlib.Path) -> Any:
        checkpoint = ckptfmt.open_checkpoint(str(address))
        checkpoint.load()
        return checkpoint

    found = refuses(vector, load, place)

    if vector["valid"]:
        check_loaded(found, vector["expect"])


@named("store")
def test_store_vector(
    vector: dict[str, Any], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for key, text in vector["files"].items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(bytes.fromhex(text))
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}

    def load() -> Any:
        store = ckptfmt.open(tmp_path)
        found = store[vector["operation"]] if "operation" in vector else store.latest()
        found.verify().raise_for_problems()
        found.load()
        return found

    with caplog.at_level(logging.WARNING, logger="ckptfmt"):
        found = refuses(vector, load)

    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    if vector["valid"]:
        expect = vector["expect"]
        check_loaded(found, expect)
        assert dict(found.metrics) == expect["metrics"]
        assert sorted(found.tags) == sorted(expect["tags"])
        for key in expect["warnings"]:
            named = key, f"checkpoint {found.number + 1} "
            said = [record.getMessage() for record in caplog.records]
            assert any(name in text for text in said for name in named), said
        if not expect["warnings"]:
            assert not caplog.records


# --- what the library writes -------------------------------------------------------


def leaves() -> Iterator[tuple[str, np.ndarray]]:
    """Yield an array of each dtype and of each odd shape."""
    for name, row in dtypes.DTYPES.items():
        yield name, np.arange(6).astype(row.numpy).reshape(2, 3)
    yield "zero-d", np.array(1.5)
    yield "empty", np.empty((0, 4), np.float32)
    yield "strided", np.arange(24.0).reshape(4, 6)[::2, ::-1].T
    yield "big-endian", np.arange(4, dtype=">i4")


def state() -> dict[str, Any]:
    """Return a state tree with every kind of leaf."""
    tied = np.arange(3, dtype=np.float32)
    return {
        "model": dict(leaves()) | {"a/b": tied, "tied": tied, "a.b": tied + 1},
        "optimizer": [{"m": np.ones(4), 3: (None, True, 2**70, -(2**70), 1.5, 2j, b"x")}],
        "step": 12,
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC),
        "scalar": np.float32(0.1),
        "half": ml_dtypes.bfloat16(0.5),
    }


def test_the_independent_reader_reads_what_the_library_wrote(tmp_path: pathlib.Path) -> None:
    saved = state()
    with ckptfmt.open(tmp_path / "store") as store:
        store.save({"model": {"old": np.zeros(2)}})
        store.save(saved, metrics={"loss": 0.5})

    tree, arrays = reader.load(tmp_path / "store")

    check_same(tree, saved)
    assert tree["model"]["a/b"] is tree["model"]["tied"]
    assert len(arrays) == len(saved["model"]) + 1


@pytest.mark.parametrize(
    ("codec", "digest"), [("zstd", "xxh3-128"), ("raw", "sha256"), ("planes+zstd", "xxh3-128")]
)
def test_other_codecs_and_digests_are_readable(
    tmp_path: pathlib.Path, codec: str, digest: str
) -> None:
    saved = state()
    with ckptfmt.open(tmp_path / "store", codec=codec, digest=digest) as store:
        store.save(saved)

    tree, _ = reader.load(tmp_path / "store")

    check_same(tree, saved)


def test_the_independent_reader_reads_bundles_of_the_library(tmp_path: pathlib.Path) -> None:
    saved = state()
    ckptfmt.save(saved, tmp_path / "x.safetensors")

    tree, _ = reader.load(tmp_path / "x.safetensors")

    check_same(tree, saved)


def test_bundles_of_the_library_keep_the_rules_for_bundles(tmp_path: pathlib.Path) -> None:
    saved = state()
    store = ckptfmt.open(tmp_path / "store")
    store.save(saved)
    packed = ckptfmt.pack(store.save(saved), tmp_path / "packed.safetensors")
    ckptfmt.save(saved, tmp_path / "direct.safetensors")

    checker.bundle((tmp_path / "direct.safetensors").read_bytes())
    checker.bundle((tmp_path / "packed.safetensors").read_bytes())
    assert (packed.number, packed.reused_bytes) == (2, 0)


def check_same(found: Any, wanted: Any) -> None:
    """Compare two trees in type, order and bits."""
    if isinstance(wanted, np.ndarray):
        little = wanted.astype(wanted.dtype.newbyteorder("<"))
        assert (found.dtype, found.shape) == (little.dtype, wanted.shape)
        assert found.tobytes() == little.tobytes()
    elif isinstance(wanted, dict):
        assert type(found) is dict
        assert [(type(k), k) for k in found] == [(type(k), k) for k in wanted]
        for key in wanted:
            check_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert type(found) is type(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_same(one, other)
    else:
        assert type(found) is type(wanted)
        assert found == wanted


def test_data_files_open_with_safetensors_by_natural_names(tmp_path: pathlib.Path) -> None:
    big = np.arange(300_000, dtype=np.float32)  # above the limit of a shared file
    model = {"fc1": {"weight": big, "bias": np.ones(3)}, "n": np.array(7)}
    model["c"] = np.ones(2, np.complex64)
    with ckptfmt.open(tmp_path) as store:
        store.save({"model": model, "optimizer": {"m": np.zeros(3)}})

    found = {}
    for file in (tmp_path / "data").iterdir():
        found |= safetensors.numpy.load_file(file)

    assert found["fc1.weight"].tobytes() == big.tobytes()
    assert found["fc1.bias"].tobytes() == model["fc1"]["bias"].tobytes()
    assert found["n"].shape == ()
    assert found["c#0"].tobytes() == model["c"].tobytes()
    # A small section may have its own file, or share one under its full name (spec §5.2.2).
    assert (found.get("m", found.get("optimizer.m"))).tobytes() == bytes(24)


def test_every_file_the_library_writes_is_named_as_the_specification_says(
    tmp_path: pathlib.Path,
) -> None:
    with ckptfmt.open(tmp_path) as store:
        store.save(
            {"model": {"w": np.ones(3)}, "we ird/~": {"w": np.ones(2)}, "top": np.ones(1)}
        )
        store.tag(1, "best")

    names = sorted(
        f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*") if f.is_file()
    )

    data = r"data/[0-9a-f]{24}-[A-Za-z0-9_-]{1,64}-[0-9]+\.safetensors"
    assert re.fullmatch(r"annotations/0000000001-[0-9a-f]{24}-000001\.msgpack", names[0])
    assert names[1] == "ckptfmt.json"
    assert [name for name in names[2:-1] if not re.fullmatch(data, name)] == []
    assert names[-1] == "manifests/0000000001-000.ckpt"
