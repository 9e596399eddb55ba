"""What other tools write today, read back bit by bit.

Each test is skipped where its tool is absent:
`pip install onnx gguf joblib xgboost-cpu orbax-checkpoint` brings them all.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ckptfmt import migrate
from ckptfmt.migrate.readers.gguf import BLOCKS

RANDOM = np.random.default_rng(7)


def _arrays(source: pathlib.Path) -> dict[tuple[str | int, ...], np.ndarray[Any, Any]]:
    return {path: np.asarray(array) for path, array in migrate.open(source).arrays()}


def _same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    little = expected.astype(expected.dtype.newbyteorder("<"))
    return (found.dtype, found.shape, found.tobytes()) == (
        little.dtype,
        little.shape,
        little.tobytes(),
    )


@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
def test_gguf_keeps_quantised_blocks_with_their_type(
    endianness: str, tmp_path: pathlib.Path
) -> None:
    gguf = pytest.importorskip("gguf")
    weights = RANDOM.standard_normal((4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    order = getattr(gguf.GGUFEndian, endianness)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", endianess=order)
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("plain", weights)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    source = migrate.open(tmp_path / "x.gguf")
    found = _arrays(tmp_path / "x.gguf")
    tree = source.tree()

    assert _same(found["model", "plain"], weights)
    assert tree["model"]["packed"].cls == "gguf.Q8_0"
    assert tree["model"]["packed"].state["shape"] == [4, 64]
    assert found["model", "packed", "__state__", "blocks"].tobytes() == packed.tobytes()
    assert found["lists", "tokenizer.ggml.scores"].tolist() == [0.5, 1.5]
    assert tree["lists"]["tokenizer.ggml.tokens"] == ["a", "b"]
    assert tree["config"]["general.architecture"] == "llama"


def test_gguf_knows_the_blocks_of_each_type() -> None:
    gguf = pytest.importorskip("gguf")

    sizes = {
        kind.value: (kind.name, *size)
        for kind, size in gguf.GGML_QUANT_SIZES.items()
        if size[0] > 1
    }

    assert sizes.items() >= BLOCKS.items()
    assert len(BLOCKS) >= 24


@pytest.mark.parametrize("external", [False, True])
def test_onnx_initialisers_constants_and_external_data(
    external: bool, tmp_path: pathlib.Path
) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kinds = ("f4", "f8", "f2", "i1", "i8", "u2", "?", "c8")
    arrays = {kind: RANDOM.integers(0, 2, (300, 5)).astype(kind) for kind in kinds}
    typed = helper.make_tensor("typed", onnx.TensorProto.FLOAT16, [2], [1.0, -2.0])
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(arrays["i8"], "inner")
    )
    graph = helper.make_graph(
        [constant, helper.make_node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [300, 5])],
        [typed, *(numpy_helper.from_array(a, k) for k, a in arrays.items())],
    )
    onnx.save(
        helper.make_model(graph, producer_name="me"),
        tmp_path / "m.onnx",
        save_as_external_data=external,
        location="weights.bin",
        size_threshold=100,
    )

    source = migrate.open(tmp_path / "m.onnx")
    found = _arrays(tmp_path / "m.onnx")

    assert all(_same(found["model", kind], array) for kind, array in arrays.items())
    assert _same(found["model", "c"], arrays["i8"])
    assert _same(found["model", "typed"], np.array([1, -2], "f2"))
    assert source.files == (("m.onnx", "weights.bin") if external else ("m.onnx",))
    assert any("graph of 2 operations" in note.text for note in source.report.notes)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_is_read_packed_or_not(compress: Any, tmp_path: pathlib.Path) -> None:
    joblib = pytest.importorskip("joblib")
    arrays = {
        "plain": RANDOM.standard_normal((30, 40)),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "empty": np.empty((0, 3)),
    }
    state = {
        **arrays,
        "objects": np.array([{"inner": np.ones(3)}, 2], dtype=object),
        "s": "text",
    }
    joblib.dump(state, tmp_path / "x", compress=compress)

    found = _arrays(tmp_path / "x")

    assert migrate.open(tmp_path / "x").format == "joblib"
    assert all(_same(found[name,], array) for name, array in arrays.items())
    assert found["objects", 0, "inner"].tolist() == [1, 1, 1]


def test_xgboost_trees_are_the_same_from_json_and_ubjson(tmp_path: pathlib.Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    x = RANDOM.standard_normal((200, 4))
    booster = xgboost.train({"max_depth": 3}, xgboost.DMatrix(x, x[:, 0] * x[:, 1]), 3)
    booster.save_model(tmp_path / "m.json")
    booster.save_model(tmp_path / "m.ubj")

    text, binary = _arrays(tmp_path / "m.json"), _arrays(tmp_path / "m.ubj")

    below = ("learner", "gradient_booster", "model", "trees", 0)
    learner = json.loads((tmp_path / "m.json").read_text())["learner"]
    tree = learner["gradient_booster"]["model"]["trees"][0]
    split = np.array(tree["split_conditions"], np.float32)
    assert _same(text[*below, "split_conditions"], split)
    both = text.keys() & binary.keys()  # UBJSON tells the dtype of empty lists, too
    assert len(both) >= 30
    assert all(text[path].tolist() == binary[path].tolist() for path in both)
    assert binary[*below, "split_conditions"].dtype == np.dtype(">f4")


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_orbax_is_read_without_tensorstore(
    ocdbt: bool, zarr3: bool, tmp_path: pathlib.Path
) -> None:
    orbax = pytest.importorskip("orbax.checkpoint")
    state = {
        "params": {"dense": {"kernel": RANDOM.standard_normal((300, 200)).astype(np.float32)}},
        "list": [np.arange(5, dtype=np.int64), np.float64(0.5) * np.ones((2, 2))],
        "zeros": np.zeros((64, 64), np.float16),
        "scalar": np.asarray(3, np.int32),
        "many": {f"a{n}": np.full((n + 1,), n, np.float32) for n in range(300)},
    }
    checkpointer = orbax.Checkpointer(
        orbax.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    )
    checkpointer.save(tmp_path / "x", state)

    found = _arrays(tmp_path / "x")

    flat = {
        ("params", "dense", "kernel"): state["params"]["dense"]["kernel"],
        ("list", 0): state["list"][0],
        ("list", 1): state["list"][1],
        ("zeros",): state["zeros"],
        ("scalar",): state["scalar"],
        **{("many", name): array for name, array in state["many"].items()},
    }
    assert all(_same(found[path], array) for path, array in flat.items())
    assert len(found) == len(flat)
