"""Checkpoints in one file: bundles with their manifest, exports without."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ckptfmt._engine import plan, single, stage
from ckptfmt._engine.lineage import sections
from ckptfmt._engine.read import Reader
from ckptfmt._engine.request import Payload
from ckptfmt._engine.restore import Patterns, Rename
from ckptfmt._engine.single import Source
from ckptfmt._engine.source import Place
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.facts import Origin
from ckptfmt.backends.single import file_nbytes, open_file, publish
from ckptfmt.format import digest as digests
from ckptfmt.format import tables
from ckptfmt.format.manifest import (
    Artifact,
    Manifest,
    decode_head,
    encode_metadata,
    encode_tree,
)
from ckptfmt.format.summary import Summary
from ckptfmt.format.tables import Chunk
from ckptfmt.leaves import PROBE, ArrayRef
from ckptfmt.options import Progress, Sources, default_threads, expect
from ckptfmt.tree import Leaf, unflatten

SUFFIX = ".safetensors"


def pack(
    checkpoint: Checkpoint,
    url: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    weights_only: bool = False,
    progress: Progress | None = None,
    storage_options: dict[str, object] | None = None,
) -> Checkpoint:
    """Write a checkpoint as one safetensors file that carries its manifest.

    Every byte is verified on the way. The file appears whole or not at all. Number, id, time,
    metrics and all other facts stay those of the checkpoint.

    Args:
        overwrite: Replace an existing file, atomically.
        weights_only: Only the section `model`, for loaders that refuse other entries.
        progress: Called with (phase, done, total bytes).

    Raises:
        ConflictError: the file exists.
        NotFoundError: `weights_only`, and there is no section `model`.
        IntegrityError: the checkpoint is damaged; no file is left.
        UsageError: its manifest is too large for one file.
    """
    expect("checkpoint", checkpoint, Checkpoint)
    expect("url", url, str, os.PathLike)
    reader = checkpoint.reader()
    chosen = checkpoint.choose("model" if weights_only else None, None)
    probe = None if weights_only else checkpoint.manifest.structures()[1]
    sources, structure = _chosen_sources(reader, chosen, probe)
    manifest = checkpoint.manifest
    if weights_only:
        manifest = Manifest(
            summary=manifest.summary,
            tree=encode_tree(structure),
            tables=manifest.tables,
            chunk_nbytes=manifest.chunk_nbytes,
            nodes=manifest.nodes,
            artifacts=manifest.artifacts,
            history=manifest.history,
        )
    backend, key = open_file(url, storage_options=storage_options)
    file = single.bundle(sources, manifest)
    publish(backend, key, file.blocks(progress), nbytes=file.nbytes, overwrite=overwrite)
    return open_bundle(url, storage_options=storage_options)


def export(
    checkpoint: Checkpoint,
    url: str | os.PathLike[str],
    *,
    select: Patterns | None = "model",
    rename: Rename | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    storage_options: dict[str, object] | None = None,
) -> None:
    """Write arrays of a checkpoint as plain safetensors, without a manifest.

    Names are the natural ones (`fc1.weight`); arrays of sections other than `model` are
    prefixed with theirs. Tied arrays are written once, under the first name. Every byte is
    verified on the way; the file appears whole or not at all.

    Raises:
        ConflictError: the file exists and `overwrite` is False.
        NotFoundError: `select` matches nothing.
        UsageError: a dtype that safetensors cannot name.
        IntegrityError: the checkpoint is damaged; no file is left.
    """
    expect("checkpoint", checkpoint, Checkpoint)
    expect("url", url, str, os.PathLike)
    chosen = checkpoint.choose(select, rename)
    sources, _ = _chosen_sources(checkpoint.reader(), chosen)
    backend, key = open_file(url, storage_options=storage_options)
    file = single.plain(sources)
    publish(backend, key, file.blocks(progress), nbytes=file.nbytes, overwrite=overwrite)


def open_bundle(
    url: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Checkpoint:
    """Open a bundle; reads its header only.

    Raises:
        NotFoundError: no such file.
        FormatError: no bundle, or a damaged one.
    """
    backend, key = open_file(url, storage_options=storage_options)
    opened = single.open_bundle(backend, key, file_nbytes(backend, key))
    origin = Origin(
        backend=backend,
        url=os.fspath(url) if "://" not in os.fspath(url) else f"{backend.url}/{key}",
        manifest=lambda: opened.manifest,
        places=lambda manifest: [Place(key, opened.start) for _ in manifest.tables.files],
        attached={},
        threads=default_threads(),
        verified=set(),
        loaded=lambda: None,
        changed=lambda _: None,
    )
    return Checkpoint(decode_head(opened.data), origin)


def write_bundle(
    payload: Payload,
    url: str | os.PathLike[str],
    *,
    overwrite: bool,
    writer: Mapping[str, str],
    storage_options: dict[str, object] | None,
) -> Checkpoint:
    """Write a state as a bundle of its own: number 1, without a parent."""
    algorithm = digests.DIGESTS["xxh3-128"]
    leaves = payload.flat.leaves
    size = plan.chunk_nbytes(sum(leaf.nbytes for leaf in leaves), None)
    found = [_leaf_source(leaf, size, algorithm) for leaf in leaves]
    sources = Sources()
    save_id = sources.save_id()
    manifest = Manifest(
        summary=Summary(
            number=1,
            revision=0,
            id=save_id,
            save=save_id,
            parent=None,
            time=sources.time(),
            counters=payload.counters,
            metrics=payload.metrics,
            tags=payload.tags,
            sections=sections(
                payload.flat.structure,
                ((leaf.path, leaf.nbytes) for leaf in leaves),
            ),
            writer=writer,
        ),
        tree=encode_tree(payload.flat.structure),
        probe=None if payload.flat.probe is None else encode_tree(payload.flat.probe),
        tables=tables.build((), files=(), algorithm=algorithm),
        chunk_nbytes=size,
        nodes=encode_metadata(payload.metadata),
        artifacts=[Artifact(n, algorithm.of(data), data) for n, data in payload.artifacts],
    )
    backend, key = open_file(url, storage_options=storage_options)
    file = single.bundle(found, manifest)
    publish(backend, key, file.blocks(None), nbytes=file.nbytes, overwrite=overwrite)
    return open_bundle(url, storage_options=storage_options)


def _leaf_source(leaf: Leaf, size: int, algorithm: digests.Digest) -> Source:
    own = list(plan.pieces([leaf], size))
    chunks = []
    by_start = {piece.start: piece for piece in own}
    for piece, digest in zip(own, stage.stage([leaf], own, algorithm, {}).digests, strict=True):
        chunks.append(
            Chunk(0, 0, piece.nbytes, "raw", digest, digest, piece.start, piece.shape)
        )
    return Source(
        path=leaf.path,
        aliases=leaf.aliases,
        dtype=leaf.dtype,
        shape=leaf.array.shape,
        chunks=chunks,
        read=lambda chunk: stage.piece_bytes(leaf, by_start[chunk.start]),
    )


def _chosen_sources(reader: Reader, chosen: Any, probe: Any = None) -> tuple[list[Source], Any]:
    """Return the arrays of a structure, and the structure with their new rows."""
    rows: dict[int, int] = {}
    names: dict[int, list[str]] = {}

    def renumber(path: str, row: int) -> ArrayRef:
        names.setdefault(row, []).append(path)
        return ArrayRef(rows.setdefault(row, len(rows)))

    structure = unflatten(chosen, renumber)
    if probe is not None:  # its arrays follow those of the tree
        unflatten(probe, lambda path, row: renumber(f"{PROBE}/{path}", row))
    return [_row_source(reader, row, names[row]) for row in rows], structure


def _row_source(reader: Reader, row: int, names: Iterable[str]) -> Source:
    array = reader.tables.array(row)
    first, *aliases = names
    raw = []
    for chunk in reader.tables.chunks(row):
        nbytes = array.dtype.itemsize
        for extent in chunk.shape:
            nbytes *= extent
        raw.append(chunk._replace(nbytes=nbytes))
    return Source(
        path=first,
        aliases=aliases,
        dtype=array.dtype,
        shape=array.shape,
        chunks=raw,
        read=lambda chunk: stage.flat_bytes(reader.box(row, (chunk.start, chunk.shape))),
    )
