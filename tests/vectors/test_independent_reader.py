"""The vectors judged without the library: reader.py loads, checker.py refuses with its code."""

from __future__ import annotations

import datetime
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import safetensors

HERE = pathlib.Path(__file__).parent
SPEC = HERE.parents[1] / "spec"
sys.path.insert(0, str(HERE))  # --import-mode=importlib does not

import checker  # noqa: E402
import reader  # noqa: E402

VECTORS = {
    f.stem: json.loads(f.read_text("utf-8")) for f in sorted((SPEC / "vectors/v1").iterdir())
}
# What a reader of 100 lines lets pass because no array and no value depends on it.
HARMLESS = {
    "bundle-digest",
    "bundle-header",
    "bundle-number",
    "bundle-too-large",
    "store-marker-version-bool",
}


def named(*kinds: str) -> list[str]:
    """Return the vectors of some kinds."""
    return [name for name, vector in VECTORS.items() if vector["kind"] in kinds]


def content(vector: dict[str, Any]) -> bytes:
    """Return the bytes of a vector that is one file."""
    if "hex" in vector:
        return bytes.fromhex(vector["hex"])
    return b"".join(bytes.fromhex(text) * count for text, count in vector["runs"])


def written(vector: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Write a bundle or a store and return its place."""
    if vector["kind"] == "bundle":
        (folder / "x.safetensors").write_bytes(content(vector))
        return folder / "x.safetensors"
    for key, text in vector["files"].items():
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_bytes(bytes.fromhex(text))
    return folder


def check(vector: dict[str, Any]) -> Any:
    """Judge a vector by its kind; return what there is to compare."""
    data = content(vector) if "files" not in vector else b""
    match vector["kind"]:
        case "manifest":
            return checker.manifest(data)
        case "bundle":
            return checker.bundle(data)
        case "datafile-header":
            return checker.datafile(data)
        case "node":
            return checker.node(data, vector["arrays"])
    return checker.record(vector["kind"], vector["key"], data)


def test_there_are_vectors_of_every_kind() -> None:
    kinds = {vector["kind"] for vector in VECTORS.values()}

    assert kinds == {
        "manifest", "bundle", "datafile-header", "node", "annotation", "intent", "part",
        "store",
    }  # fmt: skip
    assert len(VECTORS) > 500
    assert VECTORS.keys() > HARMLESS


def test_the_committed_vectors_are_those_of_the_generator() -> None:
    done = subprocess.run(
        [sys.executable, str(SPEC / "vectors/make.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_generator_does_not_use_the_library() -> None:
    texts = [file.read_text("utf-8") for file in (SPEC / "vectors").glob("*.py")]

    assert len(texts) > 5
    assert not [text for text in texts if "import ckptfmt" in text or "from ckptfmt" in text]


def test_every_clause_that_a_vector_cites_is_in_the_specification() -> None:
    text = (SPEC / "v1.md").read_text("utf-8")
    cited = {vector["clause"].removeprefix("§") for vector in VECTORS.values()}

    missing = [c for c in cited if f"**{c}**" not in text and f"# {c} " not in text]

    assert not missing


@pytest.mark.parametrize(
    "name",
    named("manifest", "bundle", "datafile-header", "node", "annotation", "intent", "part"),
)
def test_the_checker_agrees(name: str) -> None:
    vector = VECTORS[name]
    code, found = None, None
    try:
        found = check(vector)
    except reader.Refused as error:
        code = error.code

    # The manifest in these bundles is right: the reader finds the damage behind it.
    data_only = {"bundle-flip-data", "bundle-cut", "bundle-extended", "bundle-short"}
    assert code == (None if name in data_only else vector["code"]), vector["title"]
    if vector["valid"] and vector["kind"] == "datafile-header":
        assert found == vector["expect"]["entries"]


@pytest.mark.parametrize("name", named("bundle", "store"))
def test_the_reader_agrees(name: str, tmp_path: pathlib.Path) -> None:
    vector = VECTORS[name]
    place = written(vector, tmp_path)
    if not vector["valid"]:
        if name in HARMLESS or "operation" in vector:
            return
        with pytest.raises((reader.Refused, KeyError, ValueError, TypeError)) as caught:
            reader.load(place)
        assert getattr(caught.value, "code", vector["code"]) == vector["code"], vector["title"]
        return

    tree, arrays = reader.load(place)

    expect = vector["expect"]
    for path, wanted in expect["arrays"].items():
        for alias in (path, *wanted["aliases"]):
            array = arrays[alias]
            assert array.dtype == reader.dtype(wanted["dtype"]), alias
            assert (list(array.shape), array.tobytes().hex()) == (
                wanted["shape"],
                wanted["hex"],
            )
    assert len(arrays) == sum(1 + len(a["aliases"]) for a in expect["arrays"].values())
    assert same(tree, expect["tree"], [arrays[path] for path in expect["arrays"]])


@pytest.mark.parametrize("name", named("bundle", "store", "datafile-header"))
def test_the_parser_of_safetensors_accepts_every_valid_file(name: str) -> None:
    vector = VECTORS[name]
    if not vector["valid"]:
        return
    files = vector.get("files", {"data/": vector.get("hex")})
    complete = name not in ("store-crashed-save", "store-data-short", "store-data-long")
    for key, text in files.items():
        if key.startswith("data/") and text and complete:
            # It refuses unknown dtypes, holes, overlaps and lengths that differ.
            safetensors.deserialize(bytes.fromhex(text))


def same(value: Any, typed: Any, rows: list[np.ndarray]) -> bool:
    """Tell whether a value is what the JSON form of spec §12.3 says."""
    match typed:
        case {"dict": pairs}:
            keys = [k.get("str", None) if "str" in k else int(k["int"]) for k, _ in pairs]
            return (
                type(value) is dict
                and list(value) == keys
                and all(same(value[k], v, rows) for k, (_, v) in zip(keys, pairs, strict=True))
            )
        case {"list": items} | {"tuple": items}:
            return (
                type(value) is (list if "list" in typed else tuple)
                and len(value) == len(items)
                and all(same(v, t, rows) for v, t in zip(value, items, strict=True))
            )
        case {"array": row}:
            return value is rows[row]
        case {"int": text}:
            return type(value) is int and str(value) == text
        case {"float": text}:
            return type(value) is float and np.array(value, ">f8").tobytes().hex() == text
        case {"str": text}:
            return type(value) is str and value == text
        case {"complex": [real, imaginary]}:
            parts = np.array([value.real, value.imag], ">f8").tobytes().hex()
            return type(value) is complex and parts == real + imaginary
        case {"datetime": text}:
            return type(value) is datetime.datetime and value.isoformat() == text
        case {"scalar": [name, data]}:
            return value.dtype == reader.dtype(name) and value.tobytes().hex() == data
        case None | bool():
            return value is typed
    raise AssertionError(typed)


def test_the_tree_comparison_sees_differences() -> None:
    assert same(
        {"a": [1, 0.5]},
        {"dict": [[{"str": "a"}, {"list": [{"int": "1"}, {"float": "3fe0000000000000"}]}]]},
        [],
    )
    assert not same({"a": (1,)}, {"dict": [[{"str": "a"}, {"list": [{"int": "1"}]}]]}, [])
    assert not same({"a": True}, {"dict": [[{"str": "a"}, {"int": "1"}]]}, [])
