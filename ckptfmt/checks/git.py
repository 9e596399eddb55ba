"""Which commit is the code of, and was it changed since? Found out by reading git's files.

No program is started: `git` runs what a repository's configuration names. What is staged shows
by the trees of index and commit, what is not by size, time and content of each tracked file.
Files that git does not track do not count. Where that cannot be told, or not soon, it is None.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import stat
import struct
import time
import zlib
from typing import Final, NamedTuple

from ckptfmt.checks import redact
from ckptfmt.errors import UnsupportedError

MAX_READ_NBYTES: Final = 2**26  # of an index, of packed references, of files to be digested
MAX_SECONDS: Final = 0.5  # storage may be slow, and a save waits

_FIELDS: Final = struct.Struct(">10I")  # ctime, mtime, device, inode, mode, owner, group, size
_UNREAD: Final = (b"link", b"sdir")  # extensions with entries that are not in this file
_ROOT: Final = re.compile(rb"\0\d+ \d+\n")  # of a tree that is up to date
_COMMIT: Final = 1  # type of an object in a pack


class Entry(NamedTuple):
    """A tracked file as the index has it."""

    path: bytes
    mtime: tuple[int, int]  # seconds, nanoseconds
    ctime: tuple[int, int]  # the same, of the last change of any kind
    mode: int
    nbytes: int  # modulo 2**32; 0 may mean: unknown
    digest: bytes
    staged: bool  # in conflict, or announced only
    looked_at: bool  # False: the user told git not to look


def describe() -> dict[str, object] | None:
    """Return commit, branch and whether tracked files were changed; None: no repository."""
    try:
        here = pathlib.Path.cwd()
    except OSError:  # the folder has been removed
        return None
    for folder in (here, *here.parents):
        found = _described(folder)
        if found is not None:
            return found
    return None


def _described(folder: pathlib.Path) -> dict[str, object] | None:
    git = folder / ".git"
    link = re.match(rb"gitdir: (.+)", _read(git, 4096))  # a worktree or a submodule
    if link:
        git = git.parent / os.fsdecode(link[1].strip())
    head = _read(git / "HEAD", 4096).decode("utf-8", "replace").strip()
    if not head:
        return None
    common = git / (os.fsdecode(_read(git / "commondir", 4096).strip()) or ".")
    reference = re.fullmatch(r"ref: (refs/(?!.*\.\.)[^\s:]+)", head)
    commit = _commit(head) if reference is None else _resolved(git, common, reference[1])
    branch = None if reference is None else redact.text(reference[1][len("refs/heads/") :])
    try:
        dirty = None if commit is None else _dirty(folder, git, common, bytes.fromhex(commit))
    except (UnsupportedError, OSError, ValueError, IndexError, struct.error, zlib.error):
        dirty = None
    return {"commit": commit, "branch": branch, "dirty": dirty}


def _resolved(git: pathlib.Path, common: pathlib.Path, name: str) -> str | None:
    loose = _read(git / name, 4096) or _read(common / name, 4096)
    packed = re.search(
        rb"^(\w+) %s$" % re.escape(name.encode()), _read(common / "packed-refs"), re.MULTILINE
    )
    found = loose.decode("utf-8", "replace").strip()
    return _commit(found) or (_commit(packed[1].decode()) if packed else None)


def _commit(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


def _dirty(
    folder: pathlib.Path, git: pathlib.Path, common: pathlib.Path, commit: bytes
) -> bool | None:
    """Tell whether tracked files differ from the commit; None where that is not known."""
    began = time.monotonic()
    index = _read(git / "index")
    if len(index) == MAX_READ_NBYTES:
        return None
    written = os.stat(git / "index").st_mtime_ns
    entries, tree = _index(index, len(commit))
    committed = _tree(common, commit)
    if None not in (tree, committed) and tree != committed:
        return True
    left = MAX_READ_NBYTES
    for entry in entries:
        if entry.staged:
            return True
        if not entry.looked_at or stat.S_IFMT(entry.mode) == 0o160000:  # a submodule
            continue
        if time.monotonic() - began > MAX_SECONDS or left < 0:
            return None
        changed, nbytes = _changed(folder, entry, written, left)
        left -= nbytes
        if changed:
            return None if _is_unsure(changed, folder, common) else True
    return None if None in (tree, committed) else False


def _index(data: bytes, width: int) -> tuple[list[Entry], bytes | None]:
    """Return the entries of an index, and the tree they make, if it is noted.

    Git's documentation, "index-format"; versions 2 and 3.

    Raises:
        UnsupportedError: it has another form.
    """
    magic, version, count = struct.unpack_from(">4sII", data)
    if magic != b"DIRC" or version not in (2, 3):
        raise UnsupportedError("an index of another form", version=version)
    entries, at = [], 12
    for _ in range(count):
        fields = _FIELDS.unpack_from(data, at)
        name = at + _FIELDS.size + width + 2
        (flags,) = struct.unpack_from(">H", data, name - 2)
        more = 0
        if flags & 0x4000:
            (more,) = struct.unpack_from(">H", data, name)
            name += 2
        end = data.index(b"\0", name)
        entries.append(
            Entry(
                path=data[name:end],
                mtime=(fields[2], fields[3]),
                ctime=(fields[0], fields[1]),
                mode=fields[6],
                nbytes=fields[9],
                digest=data[at + _FIELDS.size : at + _FIELDS.size + width],
                staged=bool(flags & 0x3000 or more & 0x2000),
                looked_at=not (flags & 0x8000 or more & 0x4000),
            )
        )
        at += (end - at + 8) // 8 * 8
    tree = None
    while at < len(data) - width:  # the digest of the index ends it
        kind, nbytes = struct.unpack_from(">4sI", data, at)
        if kind in _UNREAD:
            raise UnsupportedError("an index with parts elsewhere", extension=kind)
        root = _ROOT.match(data, at + 8) if kind == b"TREE" else None
        if root:
            tree = data[root.end() : root.end() + width]
        at += 8 + nbytes
    return entries, tree


def _changed(
    folder: pathlib.Path, entry: Entry, written: int, left: int
) -> tuple[str | None, int]:
    """Return how a file differs from what is in the index, and how many bytes that took."""
    path = os.path.join(os.fsencode(folder), entry.path)
    try:
        found = os.lstat(path)
    except OSError:
        return "gone", 0
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(entry.mode):
        return "kind", 0
    if entry.nbytes and entry.nbytes != found.st_size % 2**32:
        return "size", 0
    if stat.S_ISREG(found.st_mode) and (found.st_mode ^ entry.mode) & 0o100:
        return "mode", 0
    # The time of modification can be set back, and tools do so; the other one cannot.
    same = _is_at(found.st_mtime_ns, entry.mtime) and _is_at(found.st_ctime_ns, entry.ctime)
    if same and entry.nbytes and found.st_mtime_ns < written:  # else it may be as new as that
        return None, 0
    if found.st_size > left:
        return None, left + 1
    data = os.readlink(path) if stat.S_ISLNK(found.st_mode) else _read(path, left)
    digest = hashlib.sha1 if len(entry.digest) == 20 else hashlib.sha256
    here = digest(b"blob %d\0" % len(data) + data, usedforsecurity=False).digest()
    return None if here == entry.digest else "content", len(data)


def _is_at(time_ns: int, kept: tuple[int, int]) -> bool:
    seconds, nanos = divmod(time_ns, 10**9)
    return seconds % 2**32 == kept[0] and kept[1] in (0, nanos)


def _is_filtered(folder: pathlib.Path, common: pathlib.Path) -> bool:
    """Tell whether git may store something else than what is in a file."""
    return (folder / ".gitattributes").exists() or b"autocrlf" in _read(
        common / "config", 65536
    )


def _is_unsure(changed: str, folder: pathlib.Path, common: pathlib.Path) -> bool:
    """Tell whether git may see no difference: that depends on its settings."""
    if changed == "mode":
        return (
            re.search(rb"(?i)filemode\s*=\s*false", _read(common / "config", 65536)) is not None
        )
    return changed == "content" and _is_filtered(folder, common)


def _tree(common: pathlib.Path, commit: bytes) -> bytes | None:
    """Return the tree of a commit; None where only a difference to another one is stored."""
    name = commit.hex()
    loose = _read(common / "objects" / name[:2] / name[2:], 65536)
    text = zlib.decompressobj().decompress(loose, 4096) if loose else _packed(common, commit)
    found = re.search(rb"(?:^|\0)tree ([0-9a-f]+)\n", text)
    return bytes.fromhex(found[1].decode()) if found else None


def _packed(common: pathlib.Path, commit: bytes) -> bytes:
    """Return the beginning of a commit that lies in a pack; nothing if it does not."""
    for index in (common / "objects" / "pack").glob("*.idx"):
        offset = _place(_read(index), commit)
        if offset is None:
            continue
        with open(index.with_suffix(".pack"), "rb") as pack:
            pack.seek(offset)
            data = pack.read(65536)
        if data[0] >> 4 & 7 != _COMMIT:
            return b""
        at = next(n for n, byte in enumerate(data) if not byte & 0x80) + 1
        return zlib.decompressobj().decompress(data[at:], 4096)
    return b""


def _place(index: bytes, name: bytes) -> int | None:
    """Return where an object is in a pack; git's documentation, "pack-format", version 2."""
    if index[:8] != b"\xfftOc\0\0\0\x02" or len(index) == MAX_READ_NBYTES:
        return None
    fanout, width = struct.unpack_from(">256I", index, 8), len(name)
    low, high, total = fanout[name[0] - 1] if name[0] else 0, fanout[name[0]], fanout[255]
    names = 8 + 1024
    while low < high:
        middle = (low + high) // 2
        found = index[names + middle * width : names + (middle + 1) * width]
        if found == name:
            at = names + total * (width + 4) + 4 * middle
            (offset,) = struct.unpack_from(">I", index, at)
            return int(offset) if offset < 2**31 else None
        low, high = (middle + 1, high) if found < name else (low, middle)
    return None


def _read(path: str | bytes | pathlib.Path, limit: int = MAX_READ_NBYTES) -> bytes:
    """Return the first bytes of a regular file, or nothing if there is none to be read."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for its writer
            return b""
        with open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError):
        return b""
