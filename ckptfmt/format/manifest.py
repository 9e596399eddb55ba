"""A manifest: the one object whose creation commits a checkpoint (spec §6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ckptfmt.errors import FormatError
from ckptfmt.format import _msgpack, codec, digest, frame, layout, tables, upgrade
from ckptfmt.format import summary as _summary
from ckptfmt.format._msgpack import Packed
from ckptfmt.format.summary import Number, Summary
from ckptfmt.format.values import decode, decode_plain, encode, encode_plain
from ckptfmt.leaves import PROBE, ArrayRef, join

METADATA: Final = (
    "hyperparameters", "environment", "architecture", "preprocessing", "segments",
)  # fmt: skip

_LATE: Final = frozenset({"tree", "probe", *METADATA})  # decoded when asked for
_NIL: Final = Packed(_msgpack.pack(None))
_KNOWN: Final = frozenset(
    {
        *_LATE,
        "arrays",
        "chunks",
        "files",
        "digest",
        "chunk_nbytes",
        "artifacts",
    }
    | {"history", "metrics", "counters", "tags", "sections"}
)


class Ancestor(NamedTuple):
    """One row of the history: a checkpoint the run went through, deleted or not."""

    number: int
    id: str
    seen: int | None  # training examples, from the counter `seen`
    time: int  # microseconds since the Unix epoch
    metrics: Mapping[str, Number]
    process: str | None = None  # id of the first checkpoint that its process saved


class Artifact(NamedTuple):
    """A small file that travels with the checkpoint (tokenizer, vocabulary, ...)."""

    name: str  # one path component
    digest: bytes
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a checkpoint without its data files."""

    summary: Summary
    tree: Packed  # from `encode_tree`; `structure()` decodes it
    tables: tables.Tables
    chunk_nbytes: int  # arrays larger than this were split
    nodes: Mapping[str, Packed]  # of METADATA, from `encode_metadata`; `plain` decodes one
    probe: Packed | None = None  # of the stored example: inputs, outputs, tolerance
    artifacts: Sequence[Artifact] = ()
    history: Sequence[Ancestor] = ()  # oldest first, without this checkpoint
    unknown: Mapping[str, Any] = field(default_factory=dict)  # fields of a newer minor: kept

    def encode(self) -> bytes:
        """Return the bytes of the manifest file.

        Raises:
            UsageError: larger than `frame.MAX_MANIFEST_NBYTES`.
        """
        head, moved = _summary.encode(self.summary)
        body = {
            **self.unknown,
            "tree": self.tree,
            **self.tables.encode(),
            "digest": self.tables.digest.name,
            "chunk_nbytes": self.chunk_nbytes,
            **{name: self.nodes.get(name, _NIL) for name in METADATA},
            "probe": self.probe,
            "artifacts": [[a.name, len(a.data), a.digest, a.data] for a in self.artifacts],
            "history": _encode_history(self.history),
            **moved,
        }
        return frame.encode(frame.CHECKPOINT, head, _msgpack.pack_fields(body))

    @classmethod
    def decode(cls, data: bytes, *, head: Head | None = None, bundle: bool = False) -> Manifest:
        """Parse and check a whole manifest file.

        Everything but the state tree's structure and the metadata values is checked at once;
        those are checked when asked for, by `structure` and `plain`.

        Args:
            head: What `decode_head` made of the first bytes of `data`, if it was called.

        Raises:
            FormatError: not a manifest of a checkpoint, or any rule of spec §6 is broken.
            IntegrityError: truncated, extended or damaged.
            UnsupportedError: it needs a newer version, feature, dtype, codec or digest.
        """
        header, summary = head or decode_head(data)
        if header.kind != frame.CHECKPOINT:
            raise FormatError("expected a checkpoint, found a tombstone")
        body = _msgpack.unpack_fields(frame.body_of(header, data), "$", _LATE)
        body = upgrade.body(header.version, body)
        algorithm = digest.stored(body.get("digest"), "$.digest")
        chunk_nbytes = body.get("chunk_nbytes")
        if type(chunk_nbytes) is not int or chunk_nbytes <= 0:
            raise FormatError("expected a size", at="$.chunk_nbytes", found=chunk_nbytes)
        if missing := _LATE - body.keys():
            raise FormatError("missing field", at=f"$.{min(missing)}")
        rows = tables.decode(body, algorithm, bundle=bundle)
        if unlisted := set(codec.features(rows.codecs)).difference(summary.features.read):
            raise FormatError(
                "a codec in use is not among the features", at="$.features", found=[*unlisted]
            )
        if bundle and any(file.number != summary.number for file in rows.files):
            raise FormatError(
                "a bundle is a file of another checkpoint",
                at="$.files.number",
                expected=summary.number,
                found=rows.files[0].number,
            )
        return cls(
            summary=_summary.whole(summary, body),
            tree=body["tree"],
            tables=rows,
            chunk_nbytes=chunk_nbytes,
            nodes={name: body[name] for name in METADATA},
            probe=None if body["probe"] == _NIL else body["probe"],
            artifacts=_artifacts(body.get("artifacts"), algorithm),
            history=_history(body.get("history"), summary.parent),
            unknown={k: v for k, v in body.items() if k not in _KNOWN},
        )

    def plain(self, name: str) -> Any:
        """Return one of the METADATA, such as the hyperparameters.

        Raises:
            FormatError: it breaks a rule of spec §6.4 or §6.8.
        """
        at = f"$.{name}"
        value = decode_plain(_msgpack.unpack(self.nodes.get(name, _NIL), at), at=at)
        kind = {"environment": dict, "segments": list}.get(name)
        if kind is not None and value is not None and not isinstance(value, kind):
            raise FormatError(f"expected null or a {kind.__name__}", at=at)
        return value

    def structure(self) -> Any:
        """Return the state tree with an `ArrayRef` in the place of each array.

        Raises:
            FormatError: the tree breaks a rule of spec §6.4, or disagrees with the paths in
                the array table.
        """
        return self.structures()[0]

    def structures(self) -> tuple[Any, Any]:
        """Return the state tree and the probe (None without one), with array references.

        Raises:
            FormatError: as in `structure`, or one of the METADATA is malformed.
        """
        for name in METADATA:
            self.plain(name)
        probe = None
        node = _msgpack.unpack(self.tree, "$.tree")
        structure = decode(node, arrays=len(self.tables), at="$.tree")
        refs = list(references(structure, None))
        if self.probe is not None:
            first = len({row for _, row in refs})
            node = _msgpack.unpack(self.probe, "$.probe")
            probe = decode(node, arrays=len(self.tables), at="$.probe", first=first)
            refs.extend(references(probe, PROBE))
        _check_paths(refs, self.tables)
        return structure, probe


def _check_paths(refs: Sequence[tuple[str, int]], of: tables.Tables) -> None:
    """Refuse a table whose paths are not where the tree has the arrays (spec §6.5)."""
    aliases = set(of.aliases)
    seen = 0
    for path, row in refs:
        if row < seen and (row, path) in aliases:
            aliases.discard((row, path))
        elif row == seen and of.paths[row] == path:
            seen += 1
        else:
            raise FormatError(
                "the tree has an array where the array table has another",
                path=path,
                row=row,
                expected=of.paths[row],
            )
    if seen != len(of) or aliases:
        raise FormatError(
            "the array table has rows the tree lacks", expected=seen, found=len(of)
        )


def references(value: Any, path: str | None) -> Iterator[tuple[str, int]]:
    """Yield (path, row) of every array reference of a structure, in pre-order."""
    if isinstance(value, ArrayRef):
        yield path or "", value.row
    elif isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, ArrayRef | dict | list | tuple):
                yield from references(child, join(path, key))
    elif isinstance(value, list | tuple):
        for n, child in enumerate(value):
            if isinstance(child, ArrayRef | dict | list | tuple):
                yield from references(child, join(path, n))


def encode_tree(structure: object) -> Packed:
    """Return a structure with array references, for `Manifest.tree` and `Manifest.probe`.

    Raises:
        StateError: as in `values.encode`.
    """
    return Packed(_msgpack.pack(encode(structure)))


def encode_metadata(values: Mapping[str, Any]) -> dict[str, Packed]:
    """Return plain values, for `Manifest.nodes`."""
    return {name: Packed(_msgpack.pack(encode_plain(values.get(name)))) for name in METADATA}


def encode_tombstone(summary: Summary) -> bytes:
    """Return the bytes of a tombstone; only number, revision, id, save, time, writer count."""
    return frame.encode(
        frame.TOMBSTONE,
        _msgpack.pack(
            {
                "number": summary.number,
                "revision": summary.revision,
                "id": summary.id,
                "save": summary.save,
                "time": summary.time,
                "writer": dict(summary.writer),
                "features": summary.features.encode(),
            }
        ),
        b"",
    )


class Head(NamedTuple):
    """What the first bytes of a manifest tell."""

    header: frame.Header
    summary: Summary

    @property
    def tombstone(self) -> bool:
        """True when the number was deleted."""
        return self.header.kind == frame.TOMBSTONE


def decode_head(data: bytes, **where: object) -> Head:
    """Parse header and summary from the first bytes of a manifest.

    Raises:
        FormatError, IntegrityError, UnsupportedError: as in `Manifest.decode`.
    """
    header = frame.decode_header(data, **where)
    summary = _summary.decode(
        frame.summary_of(header, data, **where),
        tombstone=header.kind == frame.TOMBSTONE,
        version=header.version,
    )
    summary.features.require("read", number=summary.number, **where)
    return Head(header, summary)


def _encode_history(rows: Sequence[Ancestor]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "number": [r.number for r in rows],
        "id": [r.id for r in rows],
        "seen": [r.seen for r in rows],
        "time": [r.time for r in rows],
        "metrics": [dict(r.metrics) for r in rows],
    }
    if any(r.process is not None for r in rows):
        columns["process"] = [r.process for r in rows]
    return columns


def _history(found: object, parent: tuple[int, str] | None) -> list[Ancestor]:
    if not isinstance(found, dict):
        raise FormatError("expected a map of columns", at="$.history", found=found)
    columns = [found.get(name) for name in Ancestor._fields if name != "process"]
    if "process" in found:  # an addition: older manifests lack it
        columns.append(found["process"])
    if not all(isinstance(c, list) and len(c) == len(columns[0] or []) for c in columns):
        raise FormatError("expected columns of equal length", at="$.history")
    rows = [Ancestor(*row) for row in zip(*columns, strict=True)]
    for row in rows:
        match row:
            case [int(n), str(id_), None | int(), int(), dict(), process] if (
                1 <= n <= layout.MAX_NUMBER
                and layout.is_save_id(id_)
                and (process is None or (isinstance(process, str) and process))
            ):
                pass
            case _:
                raise FormatError("malformed history row", at="$.history", found=row)
        _summary.metrics({"metrics": row.metrics})
    if len({row.id for row in rows}) != len(rows):
        raise FormatError("an ancestor is listed twice", at="$.history.id")
    if rows and parent != (rows[-1].number, rows[-1].id):
        raise FormatError(
            "history does not end with the parent", at="$.history", expected=parent
        )
    return rows


def _artifacts(found: object, algorithm: digest.Digest) -> list[Artifact]:
    if not isinstance(found, list):
        raise FormatError("expected a list", at="$.artifacts", found=type(found).__name__)
    artifacts = []
    for row in found:
        match row:
            case [str(name), int(nbytes), bytes(stored), bytes(data)] if (
                len(data) == nbytes and algorithm.of(data) == stored
            ):
                check_artifact_name(name)
                artifacts.append(Artifact(name, stored, data))
            case _:
                raise FormatError(
                    "expected [name, nbytes, digest, bytes] that agree",
                    at="$.artifacts",
                    found=row[:2] if isinstance(row, list) else row,
                )
    if len({a.name for a in artifacts}) != len(artifacts):
        raise FormatError("two artifacts have one name", at="$.artifacts")
    return artifacts


def check_artifact_name(name: str) -> None:
    """Refuse a name that is not one plain path component on every system.

    Raises:
        FormatError: it could leave the folder it is restored to.
    """
    plain = 0 < len(name.encode("utf-8", "replace")) <= 255 and name.strip(" ") == name
    if not plain or name.endswith(".") or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name):
        raise FormatError("artifact name must be one plain file name", found=name)
