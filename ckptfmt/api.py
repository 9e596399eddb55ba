"""The calls most people need: open a store, save and load in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ckptfmt._engine import request, restore
from ckptfmt._engine.lineage import Lineage
from ckptfmt._engine.restore import Patterns, Rename
from ckptfmt._store.bundle import SUFFIX, open_bundle, write_bundle
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.saving import writer
from ckptfmt._store.store import Store
from ckptfmt.backends import open_backend
from ckptfmt.backends.base import Backend
from ckptfmt.backends.cached import DEFAULT_NBYTES, CachedBackend
from ckptfmt.checks import environment
from ckptfmt.checks.probe import Probe
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.format import codec as codecs
from ckptfmt.format import digest as digests
from ckptfmt.format import layout
from ckptfmt.format.manifest import METADATA
from ckptfmt.options import (
    LOCAL_FILE_NBYTES,
    REMOTE_FILE_NBYTES,
    Progress,
    Sources,
    WriteOptions,
    default_threads,
    expect,
)
from ckptfmt.training import retention

_ADDRESS: Final = re.compile(
    r"(?P<url>.+?)@(?P<which>latest|[0-9]+|best:.+|examples:[0-9]+|tag:.+|id:[0-9a-f]+)",
    re.DOTALL,
)


def open(
    url: str | os.PathLike[str] | Backend,
    *,
    keep: retention.Keep | None = None,
    durable: bool = True,
    digest: str | None = None,
    codec: str = codecs.RAW,
    threads: int | None = None,
    storage_options: dict[str, object] | None = None,
    mirror: str | os.PathLike[str] | Store | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_nbytes: int = DEFAULT_NBYTES,
    sources: Sources | None = None,
) -> Store:
    """Open the store at a URL; nothing is created before the first save.

    Args:
        url: A path, any URL fsspec knows, or a `Backend`.
        keep: Retention rules, applied after each save; None keeps everything.
        durable: False skips every fsync: faster, and a power cut may then take the newest
            checkpoints (not a killed process: that never does).
        digest: `xxh3-128` (default for a new lineage) or `sha256`; None inherits.
        codec: `raw`, `zstd`, `planes+zstd`, or `auto`, which tries a sample of each chunk.
        threads: For digests, copies and reads; None: by the number of cores.
        storage_options: For the fsspec filesystem of the URL.
        mirror: A second, larger or safer place. Saves commit here and return; one thread
            copies them there, checked, and goes on after a restart. Reading sees both; the
            rules in `keep` drop nothing here before its commit there can be read. A failure
            is raised by the next call or by `close`, which waits for the copies. A `Store`
            brings its own rules and options.
        cache: A folder of this machine that keeps what was read from slower storage; several
            processes may share it.
        cache_nbytes: The most that the folder holds.
        sources: Clock and randomness, for tests.

    Raises:
        UsageError: an argument is out of range.
        FormatError: something else lies there.
        UnsupportedError: a store of another format version.
        BackendError: storage failed.
    """
    expect("keep", keep, retention.Keep, type(None))
    expect("storage_options", storage_options, dict, type(None))
    expect("mirror", mirror, str, os.PathLike, Store, type(None))
    expect("cache", cache, str, os.PathLike, type(None))
    expect("cache_nbytes", cache_nbytes, int)
    backend = _backend(url, storage_options)
    if cache is not None:
        backend = CachedBackend(backend, cache, max_nbytes=cache_nbytes)
    remote = backend.capabilities.requests > 1
    options = WriteOptions(
        durable=durable,
        digest=None if digest is None else digests.chosen(digest).name,
        codec=codecs.chosen(codec),
        threads=default_threads() if threads is None else threads,
        max_file_nbytes=REMOTE_FILE_NBYTES if remote else LOCAL_FILE_NBYTES,
        sources=sources or Sources(),
    )
    far = open(mirror) if isinstance(mirror, str | os.PathLike) else mirror
    return Store(backend, options=options, keep=keep, mirror=far)


def _backend(
    url: str | os.PathLike[str] | Backend, storage_options: dict[str, object] | None
) -> Backend:
    if isinstance(url, str | os.PathLike):
        if "\0" in str(url):
            raise UsageError("a path or URL has no NUL character", argument="url", found=url)
        return open_backend(url, storage_options=storage_options)
    if not hasattr(url, "capabilities"):
        expect("url", url, str, os.PathLike)
    if storage_options:
        raise UsageError(
            "a backend has its storage options already", options=sorted(storage_options)
        )
    return url


def save(
    state: Mapping[str, Any],
    url: str | os.PathLike[str],
    *,
    counters: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    hyperparameters: Any = None,
    architecture: Any = None,
    preprocessing: Any = None,
    artifacts: Mapping[str, bytes | os.PathLike[str]] | None = None,
    probe: Probe | None = None,
    tags: Iterable[str] = (),
    weights_only: bool = False,
    overwrite: bool = False,
    storage_options: dict[str, object] | None = None,
) -> Checkpoint:
    """Save a state tree: the next checkpoint of a store, or a bundle `*.safetensors`.

    Complete and durable on return, or an error and nothing. In a store it continues the
    newest checkpoint; open the store yourself to continue another one.

    Args:
        weights_only: Bundle only: store just the section `model`.
        overwrite: Bundle only: replace an existing file, atomically.

    Raises:
        ConflictError: the bundle exists, or another writer took the number.
        StateError: a value cannot be stored exactly.
        UsageError: a bundle's option for a store, or `weights_only` without a section `model`.
        BackendError: storage failed.
    """
    single = _is_bundle(url)
    if (weights_only or overwrite) and not single:
        raise UsageError(
            "weights_only and overwrite are for a single file *.safetensors", url=url
        )
    payload = request.payload(
        _weights(state) if weights_only and isinstance(state, Mapping) else state,
        counters=counters,
        metrics=metrics,
        tags=tags,
        artifacts=artifacts,
        metadata={
            "hyperparameters": hyperparameters,
            "architecture": architecture,
            "preprocessing": preprocessing,
            "environment": environment.capture(),
        },
        probe=None if probe is None else probe.tree(),
    )
    if not single:
        with open(url, storage_options=storage_options) as store:
            try:
                lineage = Lineage.after(store.latest().manifest)
            except NotFoundError:
                lineage = Lineage()
            return store.commit(payload, lineage)
    return write_bundle(
        payload, url, overwrite=overwrite, writer=writer(), storage_options=storage_options
    )


def _is_bundle(url: str | os.PathLike[str]) -> bool:
    expect("url", url, str, os.PathLike)
    return os.fspath(url).endswith(SUFFIX)


def _weights(state: Mapping[str, Any]) -> Mapping[str, Any]:
    if "model" not in state:
        raise UsageError(
            "weights_only stores the section 'model', which this state does not have: put the"
            " weights there, or save it whole",
            found=list(state)[:10],
        )
    return {"model": state["model"]}


def load(
    address: str | os.PathLike[str],
    *,
    select: Patterns | None = None,
    rename: Rename | None = None,
    into: Mapping[str, Any] | None = None,
    verify: bool = True,
    mmap: bool = False,
    expect: str | None = None,
    progress: Progress | None = None,
    storage_options: dict[str, object] | None = None,
) -> dict[str, Any]:
    """Load a state tree: address as in `open_checkpoint`, the rest as in `Checkpoint.load`."""
    return open_checkpoint(address, storage_options=storage_options).load(
        select=select,
        rename=rename,
        into=into,
        verify=verify,
        mmap=mmap,
        expect=expect,
        progress=progress,
    )


def open_checkpoint(
    address: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Checkpoint:
    """Return the checkpoint an address names.

    `runs/a` and `runs/a@latest` are the newest of a store; `runs/a@12` a number;
    `runs/a@best:val_loss`, `runs/a@best:acc:max`, `runs/a@examples:1000000` and
    `runs/a@tag:name` select one; `x.safetensors` is a bundle;
    `runs/a/manifests/0000000012-000.ckpt`, the file of a manifest, is the checkpoint 12.

    Raises:
        NotFoundError: it names nothing.
        UsageError: not an address.
        FormatError: and its kinds, when what it names is damaged or too new.
    """
    expect("address", address, str, os.PathLike)
    url, at = split_address(os.fspath(address))
    if at is None and url.endswith(SUFFIX):
        return open_bundle(url, storage_options=storage_options)
    store = open(url, storage_options=storage_options)
    try:
        return store.resolve(at or "latest")
    except NotFoundError as error:
        if at is None and "@" in url.rpartition("/")[2]:
            raise UsageError(
                "no store there, and what follows the '@' is no number, latest,"
                " best:METRIC[:max], examples:N, tag:NAME or id:PREFIX",
                found=url,
            ) from error
        raise


def split_address(address: str) -> tuple[str, str | None]:
    """Split `URL@WHICH` at the first `@` behind which a selector stands; None without one.

    The URL of a manifest is that of its store, and the number: the revision in force counts,
    since the data of an older one may be gone.
    """
    folder, name = os.path.split(address)
    manifest = layout.parse_manifest_key(f"{layout.MANIFESTS}/{name}")
    if manifest is not None and os.path.basename(folder) == layout.MANIFESTS:
        return os.path.dirname(folder) or os.curdir, str(manifest[0])
    found = _ADDRESS.fullmatch(address)
    return (address, None) if found is None else (found["url"], found["which"])


def unpack(
    bundle: str | os.PathLike[str] | Checkpoint,
    store: Store,
    *,
    progress: Progress | None = None,
) -> Checkpoint:
    """Commit a bundle, or a checkpoint of another store, as the next checkpoint of a store.

    State, counters, metrics, tags, artifacts, lineage and the recorded environment stay; number
    and id are new. Arrays are read through the stored file, verified, not held in memory.

    Raises:
        FormatError: and its kinds, when the source is damaged.
        ConflictError, BackendError: as in `Store.save`.
    """
    expect("bundle", bundle, str, os.PathLike, Checkpoint)
    expect("store", store, Store)
    source = bundle if isinstance(bundle, Checkpoint) else open_bundle(bundle)
    manifest = source.manifest
    how = restore.Restore(reader=source.reader(), verify=True, progress=None)
    payload = request.payload(
        how.fresh(source.choose(None, None), mmap=True),  # no load: its store goes on as it was
        counters=source.counters,
        metrics=source.metrics,
        tags=source.tags,
        artifacts=source.artifacts,
        metadata={name: manifest.plain(name) for name in METADATA},
        probe=None if (probe := source.probe()) is None else probe.tree(),
    )
    lineage = Lineage(source.parent, manifest.history, None)
    return store.commit(payload, lineage, progress=progress)
