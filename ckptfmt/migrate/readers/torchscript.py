"""TorchScript archives: the weights of compiled models. Their code is never looked at.

Since 1.1 `data.pkl` holds the module as an object of a `__torch__` class whose state has the
attributes; in 1.0 `model.json` described it, with raw tensors beside it.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import archives, modules, texts
from ckptfmt.migrate.archives import Zip
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.readers import torch_zip
from ckptfmt.migrate.source import MAX_DEPTH, Contents, Lazy, Name, Record, text_of
from ckptfmt.migrate.tensors import Tensors, storage_dtype

# Element types of the 1.0 layout.
_OLD_TYPES: Final = {
    "FLOAT": "FloatStorage", "DOUBLE": "DoubleStorage", "FLOAT16": "HalfStorage",
    "INT64": "LongStorage", "INT32": "IntStorage", "INT16": "ShortStorage",
    "INT8": "CharStorage", "UINT8": "ByteStorage", "BOOL": "BoolStorage",
}  # fmt: skip


def read(place: Place) -> Contents | None:
    """Return the weights and attributes of one archive, or None."""
    span = place.span()
    if span is None or span.head(4) != archives.ZIP_MAGIC:
        return None
    archive = Zip(span)
    names = archive.names()
    root = torch_zip.root_of(archive)
    if root is not None and f"{root}/constants.pkl" in names:
        tree = _current(archive, root)
        producer = "TorchScript of PyTorch 1.1 or newer"
    else:
        found = [name for name in names if name.endswith("/model.json")]
        if len(found) != 1:
            return None
        tree = _first(archive, found[0])
        producer = "TorchScript of PyTorch 1.0"
    return Contents(format="torchscript", root=tree, files=(span.name,), producer=producer)


def _current(archive: Zip, root: str) -> dict[str, Any]:
    module, _ = torch_zip.unpickle(archive, f"{root}/data.pkl", f"{root}/data", root)
    tree: dict[str, Any] = {"model": _flat(module), "module": module}
    folder = f"{root}/constants"
    constants, _ = torch_zip.unpickle(archive, f"{root}/constants.pkl", folder, root)
    if constants:
        tree["constants"] = constants
    return tree


def _flat(module: Any) -> dict[str, Lazy]:
    """Return the tensors of a module and of those inside it, by dotted name."""
    found: dict[str, Lazy] = {}
    for prefix, node in modules.inside(module, _objects):
        for name, value in _attributes(node):
            if isinstance(value, Lazy):
                found[f"{prefix}{text_of(name)}"] = value
    return found


def _attributes(node: Any) -> list[tuple[Any, Any]]:
    known = isinstance(node, Record) and isinstance(node.state, dict)
    return list(node.state.items()) if known else []


def _objects(node: Any) -> list[tuple[Any, Any]]:
    return [pair for pair in _attributes(node) if isinstance(pair[1], Record)]


def _first(archive: Zip, name: str) -> dict[str, Any]:
    """Return what `model.json` describes."""
    described = texts.parse(archive.span(name))
    folder = name.removesuffix("model.json")
    tensors = Tensors(archive.name)
    rows = described.get("tensors", []) if isinstance(described, dict) else None
    if not isinstance(rows, list):
        raise FormatError("malformed list of tensors", file=archive.name, member=name)
    arrays = [_old_tensor(row, archive, folder, tensors) for row in rows]
    model = described.get("mainModule", {})
    flat = dict(_old_names(model, arrays))
    rest = {key: value for key, value in described.items() if key != "tensors"}
    return {"model": flat, "tensors": arrays, "description": rest}


def _old_tensor(row: Any, archive: Zip, folder: str, tensors: Tensors) -> Lazy:
    match row:
        case {"dataType": str(kind), "data": {"key": str(key)}} if kind in _OLD_TYPES:
            dims, strides = _numbers(row.get("dims")), _numbers(row.get("strides"))
            (offset,) = _numbers([row.get("offset", 0)])
        case _:
            raise FormatError("malformed tensor", file=archive.name, found=row)
    member = f"{folder}{key}"
    name = Name("torch", _OLD_TYPES[kind])
    count = archive.nbytes(member) // storage_dtype(name).itemsize
    record = tensors.storage(name, key, "cpu", count)
    tensors.storages[key].load = functools.partial(_data, archive, member)
    return tensors.view(record, offset, dims, strides, None, row.get("requiresGrad"))


def _numbers(values: Any) -> tuple[int, ...]:
    """Return integers that JSON of protocol buffers writes as text."""
    texts = [str(value) for value in values] if isinstance(values, list) else []
    if not all(text.isdecimal() and len(text) < 20 for text in texts):
        raise FormatError("malformed numbers of a tensor", found=values)
    return tuple(map(int, texts))


def _data(archive: Zip, member: str) -> memoryview:
    span: Span = archive.span(member)
    return span.data


def _old_names(module: Any, arrays: list[Lazy]) -> list[tuple[str, Lazy]]:
    found: list[tuple[str, Lazy]] = []
    todo: list[tuple[str, Any, int]] = [("", module, 0)]
    while todo:
        prefix, node, depth = todo.pop()
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            raise FormatError("malformed module", found=prefix)
        for row in node.get("parameters", ()):
            number = int(row.get("tensorId", -1))
            if not 0 <= number < len(arrays):
                raise FormatError("a parameter without its tensor", found=row)
            found.append((f"{prefix}{row.get('name', '')}", arrays[number]))
        todo += [
            (f"{prefix}{child.get('name', '')}.", child, depth + 1)
            for child in node.get("submodules", ())
        ]
    return found
