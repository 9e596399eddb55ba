"""ONNX: initialisers and constants by name; files of external data beside the model.

Nothing tells ONNX but its shape as a protocol buffer. What the graph computes is left out.
Fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate import wire
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import MAX_AXES, Array, Contents, Lazy, Note, check_shape

MAX_DEPTH: Final = 30  # graphs inside graphs
_MODEL: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH: Final = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})
_EXTERNAL: Final = 1
_BESIDE: Final = {20: "graphs for training", 25: "functions"}

# Number → dtype, and the field of values that are no raw bytes with what stands in it.
_TYPES: Final[dict[int, tuple[Any, int, str]]] = {
    1: ("<f4", 4, "<f4"), 2: ("u1", 5, "i"), 3: ("i1", 5, "i"), 4: ("<u2", 5, "i"),
    5: ("<i2", 5, "i"), 6: ("<i4", 5, "i"), 7: ("<i8", 7, "i"), 9: ("?", 5, "i"),
    10: ("<f2", 5, "bits"), 11: ("<f8", 10, "<f8"), 12: ("<u4", 11, "i"), 13: ("<u8", 11, "i"),
    14: ("<c8", 4, "<f4"), 15: ("<c16", 10, "<f8"), 16: (ml_dtypes.bfloat16, 5, "bits"),
    17: (ml_dtypes.float8_e4m3fn, 5, "bits"), 18: (ml_dtypes.float8_e4m3fnuz, 5, "bits"),
    19: (ml_dtypes.float8_e5m2, 5, "bits"), 20: (ml_dtypes.float8_e5m2fnuz, 5, "bits"),
}  # fmt: skip
_PACKED: Final = {21: "uint4", 22: "int4", 23: "float4e2m1"}
_TEXT: Final = 8


def read(place: Place) -> Contents | None:
    """Return the arrays of one model, or None when these bytes are none."""
    span = place.span()
    model = None if span is None else _model(span)
    if span is None or model is None:
        return None
    graph = _Graph(place, span.name)
    graph.add(model[7][0], "", 0)
    producer = f"{wire.text(model, 2)} {wire.text(model, 3)}".strip()
    if not graph.root:
        return None
    for number, what in _BESIDE.items():
        if number in model:
            text = f"left out: {len(model[number])} {what}, with arrays of their own"
            graph.notes.append(Note(path="", text=text))
    operations = sum(graph.operations.values())
    text = f"left out: the graph of {operations} operations, only its arrays are kept"
    properties = {
        wire.text(p, 1): wire.text(p, 2) for p in map(wire.message, model.get(14, ()))
    }
    root: dict[str, Any] = {"model": graph.root}
    if properties:
        root["config"] = properties
    return Contents(
        format="onnx",
        root=root,
        files=(span.name, *graph.files),
        producer=producer[:200] or None,
        notes=(Note(path=wire.text(wire.message(model[7][0]), 2), text=text), *graph.notes),
        roles={"model": "model", "config": "hyperparameters"},
    )


def _model(span: Span) -> dict[int, list[Any]] | None:
    """Return the fields of a model, or None when these bytes cannot be one."""
    if span.head(1) not in (b"\x08", b"\x12", b"\x3a"):
        return None
    found: dict[int, list[Any]] = {}
    try:
        for number, value in wire.fields(span.data):
            if number not in _MODEL:
                return None
            found.setdefault(number, []).append(value)
        graphs = found.get(7, [])
        version = found.get(1, [None])[0]
        if len(graphs) != 1 or type(version) is not int or not 1 <= version < 1000:
            return None
        inner = wire.message(graphs[0])
    except FormatError:
        if len(found.get(7, [])) == 1 and found.keys() <= _MODEL and 1 in found:
            raise  # a model that is damaged behind its beginning
        return None
    return found if inner.keys() <= _GRAPH else None


class _Graph:
    """The arrays of a graph and of those inside it."""

    def __init__(self, place: Place, file: str) -> None:
        self.root: dict[str, Any] = {}
        self.files: dict[str, None] = {}
        self.notes: list[Note] = []
        self.operations: dict[str, int] = {}
        self._repeats: dict[str, int] = {}
        self._place = place
        self._file = file

    def add(self, data: Any, above: str, depth: int) -> None:
        """Take the initialisers of a graph, its constants, and what is in inner graphs."""
        if depth > MAX_DEPTH:
            raise FormatError("graphs inside graphs too deep", file=self._file, found=depth)
        graph = wire.message(data)
        for raw in graph.get(5, ()):
            tensor = wire.message(raw)
            self._put(f"{above}{wire.text(tensor, 8)}", tensor)
        for raw in graph.get(15, ()):
            sparse = wire.message(raw)
            name = wire.text(wire.message(sparse.get(1, [memoryview(b"")])[0]), 8)
            for number, part in ((1, "values"), (2, "indices")):
                for tensor in sparse.get(number, ())[:1]:
                    self._put(f"{above}{name}/{part}", wire.message(tensor))
            shape = _sizes(sparse.get(3, ()))
            self.notes.append(Note(path=name, text=f"a sparse array of shape {shape[:64]}"))
        for raw in graph.get(1, ()):
            self._node(wire.message(raw), above, depth)

    def _node(self, node: dict[int, list[Any]], above: str, depth: int) -> None:
        kind = wire.text(node, 4)
        self.operations[kind] = self.operations.get(kind, 0) + 1
        outputs = [str(bytes(one), "utf-8", "replace") for one in node.get(2, ())]
        name = wire.text(node, 3) or (outputs[0] if outputs else kind)
        for raw in node.get(5, ()):
            attribute = wire.message(raw)
            label = wire.text(attribute, 1)
            for tensor in attribute.get(5, ()):
                constant = kind == "Constant" and label == "value" and outputs
                if constant:
                    self._put(f"{above}{outputs[0]}", wire.message(tensor))
                else:
                    self._put(self._free(f"{above}{name}/{label}"), wire.message(tensor))
            for at, tensor in enumerate(attribute.get(10, ())):
                path = self._free(f"{above}{name}/{label}/{at}")
                self._put(path, wire.message(tensor))
            for at, graph in enumerate((*attribute.get(6, ()), *attribute.get(11, ()))):
                self.add(graph, f"{above}{name}/{label}/{at}/", depth + 1)

    def _free(self, name: str) -> str:
        """Return a name that no array has: nodes, unlike values, may share theirs."""
        found = name
        while found in self.root:
            self._repeats[name] = self._repeats.get(name, 1) + 1
            found = f"{name}_{self._repeats[name]}"
        if found != name:
            self.notes.append(Note(path=found, text=f"another node is called {name!r}, too"))
        return found

    def _put(self, name: str, tensor: dict[int, list[Any]]) -> None:
        if name in self.root:
            raise FormatError("two arrays have one name", file=self._file, path=name)
        self.root[name] = self._array(name, tensor)

    def _array(self, name: str, tensor: dict[int, list[Any]]) -> Any:
        sizes = _sizes(tensor.get(1, ()))
        kind = wire.integer(tensor, 2)
        if kind == _TEXT:
            values = [bytes(value) for value in tensor.get(6, ())]
            return [str(v, "utf-8") if _is_text(v) else v for v in values]
        if kind in _PACKED:
            count = math.prod(check_shape(sizes, 1, file=self._file, path=name))
            nbytes = (count + 1) // 2
            dtype, shape = np.dtype("u1"), check_shape((nbytes,), 1)
            text = f"{_PACKED[kind]} of shape {sizes}, kept as bytes, two elements in each"
            self.notes.append(Note(path=name, text=text))
        elif kind in _TYPES:
            dtype = np.dtype(_TYPES[kind][0])
            shape = check_shape(sizes, dtype.itemsize, file=self._file, path=name)
            nbytes = math.prod(shape) * dtype.itemsize
        else:
            raise UnsupportedError(
                "an unknown type of array", file=self._file, path=name, found=kind
            )
        if wire.integer(tensor, 14) == _EXTERNAL:
            raw = self._external(name, tensor, nbytes)
        elif 9 in tensor:
            raw = tensor[9][-1]
        else:
            return _listed(name, tensor, kind, dtype, shape)
        if not isinstance(raw, memoryview) or len(raw) != nbytes:
            raise FormatError(
                "data and shape disagree", file=self._file, path=name, expected=nbytes
            )
        data = raw
        return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))

    def _external(self, name: str, tensor: dict[int, list[Any]], nbytes: int) -> memoryview:
        pairs = {
            wire.text(p, 1): wire.text(p, 2) for p in map(wire.message, tensor.get(13, ()))
        }
        offset, length = pairs.get("offset", "0"), pairs.get("length", str(nbytes))
        plain = offset.isascii() and offset.isdigit() and len(offset) < 20
        if not plain or length != str(nbytes):
            raise FormatError(
                "malformed place of external data", file=self._file, path=name, found=pairs
            )
        span = self._place.folder.inside(pairs.get("location"), said_by=self._file)
        self.files[span.name] = None
        return span.cut(int(offset), nbytes, name)


def _listed(
    name: str,
    tensor: dict[int, list[Any]],
    kind: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Lazy:
    """Return an array whose values stand in a field of numbers; decoded when it is read."""
    field, spec = (5, "i") if kind in _PACKED else _TYPES[kind][1:]
    values = tensor.get(field, [])
    coded = spec in ("i", "bits")
    parts = [v for v in values if isinstance(v, memoryview) or coded]
    if coded:
        # One byte of four bits each, or an item's bytes; of a complex number, one of its parts.
        found = sum(wire.count_packed(v) if isinstance(v, memoryview) else 1 for v in parts)
        found *= 1 if kind in _PACKED else dtype.itemsize
    else:
        found = sum(map(len, parts))
    nbytes = math.prod(shape) * dtype.itemsize
    if found != nbytes:
        raise FormatError("data and shape disagree", path=name, expected=shape, found=found)

    def load() -> Array:
        if not coded:
            data: Any = parts[0] if len(parts) == 1 else b"".join(parts)
            return np.frombuffer(data, dtype).reshape(shape)
        whole = np.empty(math.prod(shape), f"<u{dtype.itemsize}")
        at = 0
        for part in parts:
            blocks = (
                wire.packed(part)
                if isinstance(part, memoryview)
                else [np.array([part], np.uint64)]
            )
            for block in blocks:
                whole[at : at + len(block)] = block.astype(whole.dtype)  # the low bytes
                at += len(block)
        return whole.view(dtype).reshape(shape)

    return Lazy(dtype, shape, load)


def _pairs(rows: Any) -> dict[str, str]:
    return {wire.text(row, 1): wire.text(row, 2) for row in map(wire.message, rows)}


def _sizes(values: Any) -> list[int]:
    """Return the lengths of the axes, packed or one by one; negative ones as they were."""
    found: list[int] = []
    for value in values:
        if isinstance(value, memoryview):
            if wire.count_packed(value) > MAX_AXES:
                raise FormatError("no array has so many axes")
            found += [int(n) for block in wire.packed(value) for n in block]
        else:
            found.append(value)
    return [n - 2**64 if n >= 2**63 else n for n in found]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
