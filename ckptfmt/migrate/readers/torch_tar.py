"""PyTorch's first format, a tar archive (0.1.x): `storages`, `tensors`, `pickle`."""

from __future__ import annotations

import functools
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.pickles import Machine
from ckptfmt.migrate.readers.archive import is_tar, tar_members
from ckptfmt.migrate.source import Contents, Lazy, Name, Record
from ckptfmt.migrate.tensors import Storage, Tensors

MEMBERS: Final = "storages", "tensors", "pickle"
MAX_AXES: Final = 64


def read(place: Place) -> Contents | None:
    """Return what one archive holds, or None."""
    span = place.span()
    if span is None or not is_tar(span):
        return None
    members = tar_members(span)
    if not all(name in members for name in MEMBERS):
        return None
    old = _Archive(*(members[name]() for name in MEMBERS))
    return Contents(
        format="torch-tar", root=old.root(), files=(span.name,), producer="PyTorch 0.1"
    )


class _Archive:
    def __init__(self, storages: Span, tensors: Span, pickle: Span) -> None:
        self._blobs = storages, tensors, pickle
        self._tensors = Tensors(storages.name)
        self._storages: dict[str, Record] = {}
        self._arrays: dict[str, Lazy] = {}

    def root(self) -> Any:
        """Return the object.

        Raises:
            FormatError: malformed or truncated.
        """
        storages, tensors, pickle = self._blobs
        self._read_storages(storages)
        self._read_tensors(tensors)
        machine = Machine(
            pickle.data, table=self._tensors.table(), persistent=self._known, file=pickle.name
        )
        root = machine.load()
        if machine.at != pickle.nbytes:
            raise FormatError("bytes behind the pickle", file=pickle.name, offset=machine.at)
        self._tensors.check()
        return root

    def _known(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and identity and isinstance(identity[0], Name):
            return identity[0]  # a module's class; its source text follows and is not kept
        key = str(identity) if type(identity) in (int, str) else None
        found = None if key is None else self._arrays.get(key) or self._storages.get(key)
        if found is None:
            raise FormatError("unknown persistent id", file="pickle", found=identity)
        return found

    def _read_storages(self, span: Span) -> None:
        machine = Machine(span.data, table=self._tensors.table(), file=span.name)
        for _ in range(_count(machine, span)):
            match machine.load():
                case (int() | str() as key, str(place), Name() as kind):
                    pass
                case other:
                    raise FormatError("malformed storage", file=span.name, found=other)
            count = int.from_bytes(span.cut(machine.at, 8, "a storage"), "little")
            record = self._tensors.storage(kind, str(key), place, count)
            storage = self._tensors.storages[str(key)]
            storage.load = functools.partial(_cut, span, machine.at + 8, storage)
            storage.load()  # the file must reach so far
            machine.at += 8 + storage.nbytes
            self._storages[str(key)] = record
        views = machine.load()
        if not isinstance(views, list):
            raise FormatError("malformed views of storages", file=span.name)
        for view in views:
            match view:
                case (
                    str() | int() as key,
                    str() | int() as root,
                    int(begin),
                    int(count),
                ) if str(root) in self._storages:
                    of = self._tensors.storages[str(root)]
                    kind = Name("torch", str(self._storages[str(root)].cls).rpartition(".")[2])
                    self._storages[str(key)] = self._tensors.storage(
                        kind, str(root), of.location, of.count, (key, begin, count)
                    )
                case _:
                    raise FormatError("malformed view of a storage", file=span.name, found=view)

    def _read_tensors(self, span: Span) -> None:
        machine = Machine(span.data, table=self._tensors.table(), file=span.name)
        for _ in range(_count(machine, span)):
            match machine.load():
                case (
                    str() | int() as key,
                    str() | int() as storage,
                    Name(),
                ) if str(storage) in self._storages:
                    pass
                case other:
                    raise FormatError("malformed tensor", file=span.name, found=other)
            axes = int.from_bytes(span.cut(machine.at, 4, "a tensor"), "little")
            if axes > MAX_AXES:
                raise FormatError("too many axes", file=span.name, found=axes)
            at = machine.at + 8
            numbers = [
                int.from_bytes(span.cut(at + 8 * n, 8, "a tensor"), "little")
                for n in range(2 * axes + 1)
            ]
            self._arrays[str(key)] = self._tensors.view(
                self._storages[str(storage)],
                numbers[-1],
                tuple(numbers[:axes]),
                tuple(numbers[axes:-1]),
            )
            machine.at = at + 8 * len(numbers)


def _count(machine: Machine, span: Span) -> int:
    count = machine.load()
    if type(count) is not int or not 0 <= count <= span.nbytes:
        raise FormatError("malformed count", file=span.name, found=count)
    return count


def _cut(span: Span, at: int, storage: Storage) -> memoryview:
    return span.cut(at, storage.nbytes, f"storage {storage.key}")
