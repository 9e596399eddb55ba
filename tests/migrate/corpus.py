"""The corpus of real checkpoints: where it is, what is true of it, what is read from it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptfmt import migrate
from ckptfmt.leaves import join

HAS_H5PY: Final = importlib.util.find_spec("h5py") is not None
OWN: Final = pathlib.Path(__file__).parents[1] / "corpus"
WHOLE: Final = os.environ.get("CKPTFMT_CORPUS")

# Formats that are refused, and why: files are missing; the bytes do not tell where arrays are.
UNREAD: Final = {"orbax-damaged": "a part is missing", "ggml": "ggml before GGUF"}

# These need an extra; where it is absent, they are listed as skipped.
HDF5: Final = frozenset(
    {"keras-h5-full", "keras-h5-weights", "keras-h5", "keras-v3", "keras-weights-h5"}
)

DTYPES: Final = {"F32": "float32", "F16": "float16"}  # as GGUF calls them
BELOW_MODEL: Final = frozenset({"torchscript", "gguf", "onnx"})  # beside settings

Row = tuple[str, tuple[int, ...], str]  # dtype, shape, SHA-256 of little-endian C-order bytes


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the corpus."""

    id: str
    format: str
    folder: pathlib.Path
    truth: dict[str, Any]

    def source(self) -> pathlib.Path:
        """Return what a user would name."""
        inner = {name.partition("/")[0] for name in self.truth if "/" in name.partition("!")[0]}
        return self.folder / inner.pop() if len(inner) == 1 else self.folder

    def __str__(self) -> str:
        return self.id


def entries(root: pathlib.Path) -> list[Entry]:
    """Return the checkpoints of a corpus whose arrays are known."""
    found = []
    for row in json.loads((root / "MANIFEST.json").read_text())["entries"]:
        folder, truth = root / "files" / row["id"], root / "truth" / f"{row['id']}.json"
        if folder.is_dir() and truth.exists():
            known = json.loads(truth.read_text())
            files = _joined(known) if "reconstructed_fp32" in known else known["files"]
            found.append(Entry(row["id"], row["format"], folder, files))
    return found


def _joined(known: dict[str, Any]) -> dict[str, Any]:
    """Return what is true of a DeepSpeed set as a whole; its parts are not read one by one."""
    name, model = next(
        (name, one) for name, one in known["files"].items() if name.endswith("model_states.pt")
    )
    rows = list(model["tensors"])
    for row in known["reconstructed_fp32"]["params"]:
        (path,) = row["path"]
        for key, below in (
            ("fp32_sha256", ["master", path]),
            ("exp_avg_sha256", ["optimizer", "state", path, "exp_avg"]),
        ):
            one = {"dtype": "float32", "shape": row["shape"], "sha256": row[key]}
            rows.append({**one, "path": below})
    return {name: {"tensors": rows}}


def rows(root: pathlib.Path) -> dict[str, str]:
    """Return the format of every entry of a corpus."""
    listed = json.loads((root / "MANIFEST.json").read_text())["entries"]
    return {row["id"]: row["format"] for row in listed}


def chosen() -> list[Entry]:
    """Return the whole corpus if `CKPTFMT_CORPUS` names it, else the part that is ours."""
    return [one for one in entries(pathlib.Path(WHOLE) if WHOLE else OWN) if is_read(one)]


def is_read(entry: Entry) -> bool:
    """Tell whether there is a reader for this entry here."""
    return entry.format not in UNREAD and (entry.format not in HDF5 or HAS_H5PY)


def digest(array: np.ndarray[Any, Any]) -> str:
    """Return the SHA-256 of an array's bytes, little-endian and in C order."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


@functools.cache
def read(path: str) -> dict[tuple[str | int, ...], Row]:
    """Return all arrays of a source by path."""
    return {
        path: (array.dtype.newbyteorder("=").name, array.shape, digest(np.asarray(array)))
        for path, array in migrate.open(path).arrays()
    }


def cases(entry: Entry) -> Iterator[tuple[str, dict[Any, Row], dict[Any, Row]]]:
    """Yield (file, what is true, what was read) for each file of a checkpoint."""
    for name, truth in entry.truth.items():
        outer, _, member = name.partition("!/")
        found = read(str(entry.folder if "?" in outer else entry.folder / outer))
        several = {path[0] for path in found if path} & {
            n.partition("!/")[2] for n in entry.truth
        }
        if member and several:  # an archive with one checkpoint in it is that checkpoint
            found = {path[1:]: row for path, row in found.items() if path[:1] == (member,)}
        expected = {
            tuple(row["path"]): (
                DTYPES.get(row["dtype"], row["dtype"]),
                tuple(row["shape"]),
                row.get("sha256"),
            )
            for row in truth["tensors"]
            if "sha256" in row  # not those of text
        }
        yield name, expected, found


def missing(expected: dict[Any, Row], found: dict[Any, Row], kind: str) -> dict[Any, Row]:
    """Return the arrays that are not where they should be, with their bits."""
    if kind in BELOW_MODEL:  # TorchScript: and as they stand in the object
        found = {path[path[:1] == ("model",) :]: row for path, row in found.items()}
    if kind == "dcp":  # by flat names, and nested as they were
        found = {(".".join(map(str, path)),): row for path, row in found.items()}
    if kind == "paddle-pdiparams":  # the truth counts them, the program beside them has names
        found = {(n,): row for n, row in enumerate(found.values())}
    if kind == "paddle-fluid":  # the only file of an archive
        expected = {path[-1:]: row for path, row in expected.items()}
    lacking = {path: row for path, row in expected.items() if found.get(path) != row}
    # An optimizer of old that is keyed by tensors: torch shows a key by its contents.
    odd = {p for p in lacking if any("Parameter containing" in str(part) for part in p)}
    rows = list(found.values())
    return {p: row for p, row in lacking.items() if p not in odd or row not in rows}


def astray(done: migrate.Migrated) -> list[str]:
    """Return the items that are not where the report says: each has a place of its own."""
    one = done.checkpoint
    arrays = set(one.arrays) | {name for info in one.arrays.values() for name in info.aliases}
    beside = {
        "counters": dict(one.counters),
        "hyperparameters": one.hyperparameters,
        "architecture": one.architecture,
    }
    known = {*_places(one.load()), *_places(beside)}
    found = []
    seen: set[str | None] = set()
    for item in done.report.items:
        is_text = item.dtype is not None and item.dtype[1] in "US"
        whole = item.kind == "array" and item.dtype is not None and not is_text
        if item.target in seen or item.target not in (arrays if whole else known):
            found.append(f"{item.path} -> {item.target}")
        seen.add(item.target)
    return found


def _places(node: Any, path: str | None = None) -> Iterator[str]:
    """Yield the path of each container and leaf."""
    yield path or ""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _places(child, join(path, key))
