"""Out again to Keras: `.weights.h5` as Keras 3 names arrays, `.h5` as Keras 1 and 2 did.

What a checkpoint that came from Keras was called there stands in its report (`migration.json`);
each array goes back to its group, so that `model.load_weights` takes the file. Keras files hold
what `load_weights` reads: arrays, and for `.h5` the attributes that tell their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ckptfmt import Checkpoint, tree
from ckptfmt.errors import NotFoundError, UnsupportedError, UsageError
from ckptfmt.leaves import unescape
from ckptfmt.migrate.reports import ARTIFACT

KERAS_3: Final = ".weights.h5"
KERAS_2: Final = (".h5", ".hdf5")
_ROOTS: Final = ("model.weights.h5", "model_weights")  # of what holds more than weights
_ORDER: Final = ("@layer_names", "@weight_names", "@keras_version", "@backend")
_WAY_OUT: Final = (
    "load it into a model with ckptfmt_keras.restore, then call save_weights of the model"
)

_Row = tuple[tuple[str, ...], str]  # path in the source, path in the store


def fill(
    checkpoint: Checkpoint,
    paths: list[str],
    file: Any,
    count: Callable[[int], None],
    *,
    keras_3: bool,
) -> None:
    """Write arrays to an open file as HDF5.

    Args:
        paths: Of the arrays; ties by each of their names.

    Raises:
        UsageError: an array has no name of Keras, or one of the other kind.
        UnsupportedError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UnsupportedError("writing HDF5 needs h5py: pip install 'ckptfmt[h5]'") from error
    rows = _rows(checkpoint)
    places = {target: source for source, target in rows}
    chosen = [(path, places.get(path)) for path in paths]
    if not keras_3 and not any(part.startswith(_ORDER[:2]) for at, _ in rows for part in at):
        raise UsageError(f"this checkpoint did not come from Keras 1 or 2: {_WAY_OUT}")
    for path, source in chosen:
        is_3 = source is not None and len(source) > 1 and source[-2] == "vars"
        if source is None or is_3 is not keras_3:
            raise UsageError(
                f"Keras has no name for this array in a file of this kind: {_WAY_OUT}",
                path=path,
                expected="*.weights.h5" if is_3 else "a checkpoint that came from Keras",
            )
    with h5py.File(file, "w") as made:
        for path, source in chosen:
            array = np.asarray(checkpoint.lazy(path))
            _put(made, "/".join(source or ()), array)
            count(array.nbytes)
        if not keras_3:
            _order(made, rows, checkpoint.tree())


def _put(made: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind == "V":  # bfloat16, which HDF5 has not: as Keras writes it
        dataset = made.create_dataset(name, data=array.view("V2"))
        dataset.attrs["dtype"] = str(array.dtype)
        return
    made.create_dataset(name, data=array)


def _rows(checkpoint: Checkpoint) -> list[_Row]:
    """Return where each item of the source went, weights only.

    Raises:
        UsageError: it did not come from another format, or had too many items to list.
    """
    data = checkpoint.artifacts.get(ARTIFACT)
    items = [] if data is None else json.loads(data).get("items", [])
    if not items:
        raise UsageError(f"this checkpoint did not come from Keras: {_WAY_OUT}")
    found = []
    for item in items:
        path = tuple(map(unescape, item["path"].split("/")))
        while path[0] in _ROOTS and len(path) > 1:
            path = path[1:]
        if item["target"] is not None:
            found.append((path, item["target"]))
    return found


def _order(made: Any, rows: list[_Row], state: dict[str, Any]) -> None:
    """Write the attributes that tell the order of layers and weights."""
    values: dict[tuple[str, ...], list[Any]] = {}
    single = set()
    for path, target in rows:
        at = next((n for n, part in enumerate(path) if part.startswith(_ORDER)), None)
        if at is None:
            continue
        try:
            value = tree.lookup(state, target)
        except NotFoundError:  # beside the state tree
            continue
        into = values.setdefault(path[: at + 1], [])
        if value not in ([], ()):
            into.append(value)
        if len(path) == at + 1 and isinstance(value, str):
            single.add(path)
    for path, texts in values.items():
        group = made.require_group("/".join(path[:-1]) or "/")
        data = texts[0] if path in single else np.array([t.encode() for t in texts], "S")
        group.attrs[path[-1].removeprefix("@")] = data
