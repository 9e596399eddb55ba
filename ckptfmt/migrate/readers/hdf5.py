"""HDF5 files of Keras: full models, weights, optimizers; `.keras` archives hold one too.

h5py finds its way in the file; a contiguous dataset is then a view of the mapped bytes. What a
file could use to reach beyond itself, or to ask for more memory than it has, is refused: links
other than hard ones, external storage, virtual datasets, filters other than gzip, shuffle and
Fletcher-32, a user block. Configuration is text and stays text.
"""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate.archives import View
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Array, Contents, Lazy

MAGIC: Final = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS: Final = 1_000_000
MAX_DEPTH: Final = 90
MAX_RATIO: Final = 1100  # what gzip can reach
FILTERS: Final = frozenset({1, 2, 3})  # gzip, shuffle, Fletcher-32
_BAD: Final = (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError)


def read(place: Place) -> Contents | None:
    """Return what one file holds, or None.

    Raises:
        UnsupportedError: h5py is not installed.
    """
    span = place.span()
    if span is None or span.head(8) != MAGIC:
        return None
    try:
        import h5py
    except ImportError as error:
        raise UnsupportedError(
            "reading HDF5 needs h5py: pip install 'ckptfmt[h5]'", file=span.name
        ) from error
    try:
        file = h5py.File(View(span.data), "r")
        root = _Walk(h5py, span).file(file)
    except FormatError:
        raise
    except _BAD as error:
        raise FormatError("malformed HDF5", file=span.name) from error
    version = root.get("@keras_version")
    return Contents(
        format="keras-h5" if _is_keras(root) else "hdf5",
        root=root,
        files=(span.name,),
        producer=f"Keras {version}" if isinstance(version, str) else None,
        roles={"@model_config": "architecture", "@training_config": "hyperparameters"},
    )


def _is_keras(root: dict[str, Any]) -> bool:
    return any(name in root for name in ("@layer_names", "model_weights", "layers", "vars"))


class _Walk:
    """One pass over the objects of a file, component by component."""

    def __init__(self, h5py: Any, span: Span) -> None:
        self._h5py = h5py
        self._span = span
        self._seen: set[int] = set()  # addresses: a hard link can lead back

    def file(self, file: Any) -> dict[str, Any]:
        """Return all of a file."""
        if file.userblock_size:
            raise self._bad("a user block before the HDF5 data", "")
        return self.group(file, "", 0)

    def group(self, group: Any, path: str, depth: int) -> dict[str, Any]:
        """Return a group: its attributes as `@name`, then its members."""
        self._visit(group, path, depth)
        found: dict[str, Any] = self._attributes(group, path)
        for name in group:
            below = f"{path}/{name}"
            link = group.get(name, getlink=True)  # looks at the link, does not follow it
            if type(link) is not self._h5py.HardLink:
                raise self._bad("a link that is not a hard one", below)
            member = group[name]
            if isinstance(member, self._h5py.Group):
                self._put(found, name, self.group(member, below, depth + 1), below)
            elif isinstance(member, self._h5py.Dataset):
                self._visit(member, below, depth)
                self._put(found, name, self._dataset(member, below), below)
                for key, value in self._attributes(member, below).items():
                    self._put(found, f"{name}{key}", value, below)
            else:
                raise self._bad("an object that is no dataset and no group", below)
        return found

    def _put(self, found: dict[str, Any], name: str, value: Any, path: str) -> None:
        if name in found:
            raise self._bad("an attribute and an object would have one name", path, found=name)
        found[name] = value

    def _visit(self, node: Any, path: str, depth: int) -> None:
        address = self._h5py.h5o.get_info(node.id).addr
        if address in self._seen or depth > MAX_DEPTH or len(self._seen) > MAX_OBJECTS:
            raise self._bad("an object that is reached twice, or too deep, or too many", path)
        self._seen.add(address)

    def _bad(self, message: str, path: str, **where: object) -> FormatError:
        return FormatError(message, file=self._span.name, path=path, **where)

    def _attributes(self, node: Any, path: str) -> dict[str, Any]:
        found = {}
        for name in node.attrs:
            kind = node.attrs.get_id(name).dtype
            if kind.hasobject and self._h5py.check_string_dtype(kind) is None:
                raise self._bad("an attribute that refers to something", f"{path}@{name}")
            found[f"@{name}"] = _plain(node.attrs[name])
        return found

    def _dataset(self, node: Any, path: str) -> Any:
        """Return one dataset after checking where its bytes are and how many."""
        plist = node.id.get_create_plist()
        filters = {plist.get_filter(n)[0] for n in range(plist.get_nfilters())}
        if node.is_virtual or plist.get_external_count() or not filters <= FILTERS:
            raise self._bad("bytes outside the file, or an unknown filter", path)
        if self._h5py.check_string_dtype(node.dtype) is not None:
            if node.size > self._span.nbytes:
                raise self._bad("more texts than bytes", path)
            return _plain(node[()])
        dtype = node.dtype
        if dtype.hasobject:
            raise self._bad("a dataset of references", path)
        if node.shape is None:
            return None  # of no space at all: HDF5's null
        if not node.size:
            return Lazy.of(np.empty(node.shape, dtype))
        nbytes, stored = (
            math.prod(node.shape) * dtype.itemsize,
            node.id.get_storage_size(),
        )
        most = stored * (MAX_RATIO if 1 in filters else 1)
        if nbytes > most or stored > self._span.nbytes:
            raise self._bad("more elements than bytes", path, expected=nbytes, found=stored)
        if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
            dtype = np.dtype(ml_dtypes.bfloat16)
        offset = node.id.get_offset()
        if offset is not None and not filters and nbytes:
            data = self._span.cut(offset, nbytes, path)
            shape = node.shape
            return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))
        return Lazy(dtype, node.shape, lambda: self._loaded(node, dtype, path))

    def _loaded(self, node: Any, dtype: np.dtype[Any], path: str) -> Array:
        try:
            array: Array = np.asarray(node[()])
        except _BAD as error:
            raise self._bad("a dataset does not unpack", path) from error
        return array if array.dtype == dtype else array.view(dtype)


def _plain(value: Any) -> Any:
    """Return an attribute as plain data: text as str, arrays of text as lists."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "SOU" or not value.size:
            return _plain(value.tolist())
        return Lazy.of(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.bytes_ | np.str_):
        return _plain(value.item())
    if value is None or isinstance(value, str | np.generic):
        return value
    return str(value)
