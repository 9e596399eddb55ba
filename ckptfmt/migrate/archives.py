"""Zip archives, read strictly: what is parsed is what is used, and nothing is ever extracted.

Each member's local header must agree with the central directory; duplicate names, overlapping
members, encryption and unknown compression are refused, and a CRC is checked before bytes are
handed out. So the ways in which two zip readers see different contents do not exist here
(CVE-2025-1944, -1945, -10156).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, Final

from ckptfmt.errors import FormatError, IntegrityError, NotFoundError
from ckptfmt.migrate import scratch
from ckptfmt.migrate.files import Span

ZIP_MAGIC: Final = b"PK\x03\x04"
MAX_MEMBERS: Final = 1_000_000
SMALL_NBYTES: Final = 2**20  # a mapped file each has its price
MAX_RATIO: Final = 1100  # deflate cannot do better than 1032
_UNSAFE_FLAGS: Final = 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patched, strong, masked
_BAD: Final = (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError,
               OverflowError, OSError, KeyError)  # fmt: skip


class Zip:
    """The members of one archive."""

    def __init__(self, span: Span) -> None:
        self.name = span.name
        self._blob = span
        self._checked: set[str] = set()
        try:
            infos = zipfile.ZipFile(View(span.data)).infolist()
        except _BAD as error:
            raise FormatError("not a complete zip archive", file=span.name) from error
        if len(infos) > MAX_MEMBERS:
            raise FormatError(f"more than {MAX_MEMBERS} members", file=span.name)
        files = [info for info in infos if not info.is_dir()]
        self._infos = {info.orig_filename: info for info in files}
        self._starts = {info.orig_filename: self._start(info) for info in files}
        if len(self._infos) != len(files):
            raise FormatError("two members have the same name", file=span.name)
        self._refuse_overlaps(files)

    def names(self) -> list[str]:
        """Return the members' names, in the order of the central directory."""
        return list(self._infos)

    def nbytes(self, name: str) -> int:
        """Return the unpacked length of a member."""
        return self._info(name).file_size

    def is_stored(self, name: str) -> bool:
        """Tell whether a member is not compressed: its bytes are used where they are."""
        return self._info(name).compress_type == zipfile.ZIP_STORED

    def span(self, name: str, *, limit: int | None = None, check: bool = True) -> Span:
        """Return a member, unpacked.

        Args:
            limit: Largest length that is expected.
            check: Compare the CRC now; else `check` does it later.

        Raises:
            NotFoundError: no such member.
            FormatError: longer than `limit`, or it unpacks to another length.
            IntegrityError: the CRC is wrong.
        """
        info = self._info(name)
        if limit is not None and info.file_size > limit:
            raise FormatError(
                "a member is longer than its kind can be",
                file=self.name,
                member=name,
                expected=limit,
                found=info.file_size,
            )
        packed = self._packed(name)
        if info.compress_type == zipfile.ZIP_STORED:
            data = packed
        else:
            data = memoryview(_inflated(packed, info.file_size, self.name, name))
            self._compare(info, data)
        if check and info.compress_type == zipfile.ZIP_STORED:
            self.check(name)
        return Span(f"{self.name}!/{name}", data)

    def mapped(self, name: str) -> Span:
        """Return a member like `span`; a large one is unpacked into a scratch file.

        Raises:
            NotFoundError, FormatError, IntegrityError: as in `span`.
            BackendError: the scratch file cannot be written.
        """
        info = self._info(name)
        if self.is_stored(name) or info.file_size <= SMALL_NBYTES:
            return self.span(name)
        machine = zlib.decompressobj(-15)
        data = scratch.unpacked(self._packed(name), machine, name, nbytes=info.file_size)
        self._compare(info, data)
        return Span(f"{self.name}!/{name}", data)

    def begin(self, name: str, nbytes: int) -> bytes:
        """Return the first bytes of a member, unpacked and not yet checked."""
        packed = self._packed(name)
        if self.is_stored(name):
            return bytes(packed[:nbytes])
        try:
            return zlib.decompressobj(-15).decompress(packed, nbytes)
        except zlib.error as error:
            raise IntegrityError(
                "a member does not unpack", file=self.name, member=name
            ) from error

    def check(self, name: str) -> None:
        """Compare a stored member with its CRC, the first time it is asked for.

        Raises:
            IntegrityError: they differ.
        """
        if name not in self._checked:
            self._compare(self._info(name), self._packed(name))
            self._checked.add(name)

    def _compare(self, info: zipfile.ZipInfo, data: memoryview) -> None:
        found = zlib.crc32(data)
        if found != info.CRC:
            raise IntegrityError(
                "a member's CRC is wrong",
                file=self.name,
                member=info.orig_filename,
                expected=info.CRC,
                found=found,
            )

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._infos[name]
        except KeyError as error:
            raise NotFoundError("no such member", file=self.name, member=name) from error

    def _packed(self, name: str) -> memoryview:
        return self._blob.cut(self._starts[name], self._info(name).compress_size, name)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return where a member's bytes begin, after comparing both of its headers."""
        at = info.header_offset
        local = struct.unpack("<4s5H3I2H", self._blob.cut(at, 30, "a local header"))
        magic, _, flags, method, _, _, _, _, _, name_nbytes, extra_nbytes = local
        raw = bytes(self._blob.cut(at + 30, name_nbytes, "a member's name"))
        name = raw.decode("utf-8" if flags & 0x800 else "cp437", errors="replace")
        same = (
            magic == ZIP_MAGIC and method == info.compress_type and name == info.orig_filename
        )
        if not same or (flags | info.flag_bits) & _UNSAFE_FLAGS:
            raise FormatError(
                "local header and central directory disagree, or the member is encrypted",
                file=self.name,
                member=info.orig_filename,
                offset=at,
            )
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored and info.compress_type != zipfile.ZIP_DEFLATED:
            raise FormatError(
                "unexpected compression",
                file=self.name,
                member=info.orig_filename,
                found=info.compress_type,
            )
        most = info.compress_size if stored else info.compress_size * MAX_RATIO + 64
        if info.file_size > most or (stored and info.file_size != info.compress_size):
            raise FormatError(
                "a member's length cannot be right",
                file=self.name,
                member=info.orig_filename,
                expected=f"at most {most}",
                found=info.file_size,
            )
        return int(at + 30 + name_nbytes + extra_nbytes)

    def _refuse_overlaps(self, infos: Iterable[zipfile.ZipInfo]) -> None:
        end = 0
        for info in sorted(infos, key=lambda one: one.header_offset):
            if info.header_offset < end:
                raise FormatError(
                    "two members overlap", file=self.name, member=info.orig_filename
                )
            end = self._starts[info.orig_filename] + info.compress_size


def _inflated(packed: memoryview, nbytes: int, file: str, member: str) -> bytes:
    machine = zlib.decompressobj(-15)
    try:
        data = machine.decompress(packed, nbytes + 1)
    except zlib.error as error:
        raise IntegrityError("a member does not unpack", file=file, member=member) from error
    if len(data) != nbytes or not machine.eof:
        raise FormatError(
            "a member unpacks to another length",
            file=file,
            member=member,
            expected=nbytes,
            found=f"{len(data)} or more",
        )
    return data


class View(io.RawIOBase):
    """A file over memory that is not copied, for `zipfile`."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, len(self._data))[whence]
        if base + offset < 0:
            raise FormatError("a position before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        data = self._data[self._at : self._at + len(target)]
        target[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        end = None if size is None or size < 0 else self._at + size
        data = bytes(self._data[self._at : end])
        self._at += len(data)
        return data
