"""OCDBT, TensorStore's database of keys and values in files: its newest version, read whole.

A manifest names B+tree nodes in data files; their leaves hold values or say where they are.
Each node has a CRC-32C. Format: https://google.github.io/tensorstore/kvstore/ocdbt/#storage-format
(which leaves out one number of the manifest, its kind).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final, final

import zstandard

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError
from ckptfmt.migrate import sstable
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Names, Span

MANIFEST: Final = "manifest.ocdbt"
MAGIC: Final = (0x0CDB3A2A).to_bytes(4, "big")
_NODE: Final = (0x0CDB20DE).to_bytes(4, "big")
MAX_NODE_NBYTES: Final = 2**28
MAX_NODES: Final = 100_000
MAX_NODES_NBYTES: Final = 2**30  # of all, packed and unpacked; large values lie beside them
MAX_KEYS: Final = 2_000_000
MAX_HEIGHT: Final = 32
MAX_PATH: Final = 4096
_WINDOW: Final = 2**27


@final
@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value or node is."""

    file: str
    above: str  # folder that names inside a node there begin in
    offset: int
    nbytes: int


@final
class Database:
    """The keys of one database and where their values are.

    Args:
        folder: Where files are.
        prefix: Of the database's files in it; empty, or with `/` behind it.

    Raises:
        FormatError: malformed.
        IntegrityError: a CRC is wrong.
        NotFoundError: a data file is missing.
    """

    def __init__(self, folder: Names, prefix: str) -> None:
        self.files: dict[str, None] = {f"{prefix}{MANIFEST}": None}
        self.nbytes = 0  # of its data files
        self._folder = folder
        self._prefix = prefix
        self._said_by = f"{prefix}{MANIFEST}"
        self._values: dict[bytes, Spot | memoryview] = {}
        self._nodes = 0
        self._nodes_nbytes = 0
        self._last: bytes | None = None
        manifest = folder.inside(self._said_by, said_by=self._said_by)
        root, height = _root(manifest)
        if root is not None:
            self._visit(root, b"", height)
        nbytes = 0
        for spot in self._values.values():  # of a value that is cut off, before it is asked for
            if isinstance(spot, Spot):
                nbytes += len(self._bytes(spot, "a value"))
        if nbytes > self.nbytes:
            raise FormatError("values share bytes of files", file=self._said_by, found=nbytes)

    def names(self) -> list[str]:
        """Return all keys, sorted by their bytes."""
        return [key.decode("utf-8", "surrogateescape") for key in self._values]

    def get(self, key: str) -> memoryview | None:
        """Return a value, or None when there is no such key."""
        found = self._values.get(key.encode("utf-8", "surrogateescape"))
        return self._bytes(found, key) if isinstance(found, Spot) else found

    def _bytes(self, spot: Spot, what: str) -> memoryview:
        name = f"{self._prefix}{spot.file}"
        span = self._folder.inside(name, said_by=self._said_by)
        self.nbytes += 0 if name in self.files else span.nbytes
        self.files[name] = None
        return span.cut(spot.offset, spot.nbytes, what)

    def _visit(self, spot: Spot, above: bytes, height: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES or height > MAX_HEIGHT:
            raise FormatError("too many nodes, or too high a tree", file=spot.file)
        file = f"{self._prefix}{spot.file}"
        at = _body(Span(file, self._bytes(spot, "a node")), _NODE)
        self._nodes_nbytes += spot.nbytes + at.span.nbytes
        if self._nodes_nbytes > MAX_NODES_NBYTES:
            raise FormatError("the nodes are too large", file=file, expected=MAX_NODES_NBYTES)
        found = at.number("B", "a height")
        if found != height:
            raise FormatError("a node of another height", file=file, expected=height)
        table = _files(at, spot.above)
        count = _count(at, 3)
        if height:
            self._inner(at, table, count, above, height)
        else:
            self._leaf(at, table, count, above)
        if at.left:
            raise FormatError("bytes behind a node", file=file)

    def _inner(
        self, at: Cursor, table: list[tuple[str, str]], count: int, above: bytes, height: int
    ) -> None:
        keys, common = _keys(at, count, with_common=True)
        rows = [[at.varint() for _ in range(count)] for _ in range(6)]
        for n in range(count):
            spot = _spot(at, table, rows[0][n], rows[1][n], rows[2][n])
            self._visit(spot, above + keys[n][: common[n]], height - 1)

    def _leaf(self, at: Cursor, table: list[tuple[str, str]], count: int, above: bytes) -> None:
        keys, _ = _keys(at, count)
        lengths = [at.varint() for _ in range(count)]
        kinds = [at.varint() for _ in range(count)]
        apart = [n for n in range(count) if kinds[n] == 1]
        if set(kinds) - {0, 1} or len(self._values) + count > MAX_KEYS:
            raise FormatError("an unknown kind of value, or too many", file=at.span.name)
        ids = [at.varint() for _ in apart]
        offsets = [at.varint() for _ in apart]
        found: dict[int, Spot | memoryview] = {
            n: _spot(at, table, ids[k], offsets[k], lengths[n]) for k, n in enumerate(apart)
        }
        for n in range(count):
            if kinds[n] == 0:
                found[n] = at.take(lengths[n], "a value")
            key = above + keys[n]
            if self._last is not None and key <= self._last:
                raise FormatError("keys are out of order", file=at.span.name)
            self._last = key
            self._values[key] = found[n]


def _body(span: Span, magic: bytes) -> Cursor:
    """Return what a node or manifest holds, behind its checked header.

    Raises:
        FormatError: malformed.
        IntegrityError: the CRC is wrong.
    """
    if span.nbytes < 18 or span.head(4) != magic:
        raise FormatError("expected a node of OCDBT", file=span.name, found=span.head(4))
    nbytes = int.from_bytes(span.data[4:12], "little")
    if nbytes != span.nbytes:
        raise FormatError("a node of another length", file=span.name, expected=nbytes)
    if int.from_bytes(span.tail(4), "little") != sstable.crc32c(span.data[:-4]):
        raise IntegrityError("a node's CRC is wrong", file=span.name)
    at = Cursor(Span(span.name, span.data[:-4]), 12)
    version, packing = at.varint(), at.varint()
    if version or packing > 1:
        raise UnsupportedError(
            "an unknown version of OCDBT", file=span.name, found=(version, packing)
        )
    if not packing:
        return at
    return Cursor(Span(span.name, unzstd(span.data[at.at : -4], MAX_NODE_NBYTES, span.name)))


def unzstd(data: memoryview, limit: int, file: str) -> memoryview:
    """Return what one zstd frame holds.

    Raises:
        FormatError: malformed, or longer than `limit`.
    """
    machine = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    out = io.BytesIO()
    try:
        with machine.stream_reader(data) as reader:
            while block := reader.read(2**20):
                out.write(block)
                if out.tell() > limit:
                    raise FormatError("unpacks to too much", file=file, expected=limit)
    except zstandard.ZstdError as error:
        raise FormatError("malformed zstd", file=file) from error
    return memoryview(out.getvalue())


def _root(manifest: Span) -> tuple[Spot | None, int]:
    """Return where the root of the newest version is, and its height."""
    at = _body(manifest, MAGIC)
    at.take(16, "the id")
    if at.varint():
        raise UnsupportedError("a manifest in several files", file=manifest.name)
    at.varint(), at.varint()  # limits of the writer
    at.number("B", "the arity")
    if at.varint():  # packed: with a level
        at.number("i", "the level")
    table = _files(at, "")
    count = _count(at, 10)
    if not count:
        raise FormatError("a database without a version", file=manifest.name)
    generations = [at.varint() for _ in range(count)]
    heights = [at.number("B", "a height") for _ in range(count)]
    ids, offsets, lengths, keys, _, _ = ([at.varint() for _ in range(count)] for _ in range(6))
    if generations != sorted(set(generations)):
        raise FormatError("versions are out of order", file=manifest.name)
    if not keys[-1]:
        return None, 0
    return _spot(at, table, ids[-1], offsets[-1], lengths[-1]), heights[-1]


def _count(at: Cursor, least: int) -> int:
    found = at.varint()
    if found * least > at.left:
        raise FormatError("too short for its rows", file=at.span.name, found=found)
    return found


def _files(at: Cursor, above: str) -> list[tuple[str, str]]:
    """Return the data files that a node names: path, and what names in there begin with."""
    count = _count(at, 2)
    prefixes = [0, *(at.varint() for _ in range(count - 1))] if count else []
    suffixes = [at.varint() for _ in range(count)]
    bases = [at.varint() for _ in range(count)]
    found: list[tuple[str, str]] = []
    last = b""
    for prefix, suffix, base in zip(prefixes, suffixes, bases, strict=True):
        if prefix > len(last) or prefix + suffix > MAX_PATH or base > prefix + suffix:
            raise FormatError("malformed name of a data file", file=at.span.name)
        last = last[:prefix] + bytes(at.take(suffix, "a name"))
        try:
            path, folder = last.decode(), last[:base].decode()
        except UnicodeDecodeError as error:
            raise FormatError("malformed name of a data file", file=at.span.name) from error
        if len(above) + len(path) > MAX_PATH:
            raise FormatError("too long a name of a data file", file=at.span.name)
        found.append((above + path, above + folder))
    return found


def _spot(
    at: Cursor, table: list[tuple[str, str]], number: int, offset: int, nbytes: int
) -> Spot:
    if number >= len(table):
        raise FormatError("an unknown data file", file=at.span.name, found=number)
    file, above = table[number]
    return Spot(file, above, offset, nbytes)


def _keys(
    at: Cursor, count: int, *, with_common: bool = False
) -> tuple[list[bytes], list[int]]:
    prefixes = [0, *(at.varint() for _ in range(count - 1))] if count else []
    suffixes = [at.varint() for _ in range(count)]
    common = [at.varint() for _ in range(count)] if with_common else []
    found: list[bytes] = []
    last = b""
    for prefix, suffix in zip(prefixes, suffixes, strict=True):
        if prefix > len(last) or prefix + suffix > MAX_PATH:
            raise FormatError("malformed key", file=at.span.name)
        last = last[:prefix] + bytes(at.take(suffix, "a key"))
        found.append(last)
    if any(n > len(key) for n, key in zip(common, found, strict=False)):
        raise FormatError("malformed key", file=at.span.name)
    return found, common
