"""Artifacts → files of a folder; nothing that is there is replaced."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping

from ckptfmt.backends import LocalBackend
from ckptfmt.errors import BackendError, ConflictError, NotFoundError
from ckptfmt.format.manifest import check_artifact_name
from ckptfmt.options import expect


def extract(
    artifacts: Mapping[str, bytes],
    folder: str | os.PathLike[str],
    names: str | Iterable[str] | None,
) -> list[pathlib.Path]:
    """Write artifacts to files of a folder; see `Checkpoint.extract`.

    Raises:
        NotFoundError, ConflictError, BackendError, UsageError: as there.
    """
    expect("folder", folder, str, os.PathLike)
    expect("names", names, Iterable, type(None))
    asked = (names,) if isinstance(names, str) else names
    chosen = list(artifacts) if asked is None else list(asked)
    if unknown := [name for name in chosen if name not in artifacts]:
        raise NotFoundError("no such artifact", artifact=unknown[0], present=sorted(artifacts))
    where = pathlib.Path(folder)
    paths = [where / _checked(name) for name in chosen]
    try:
        where.mkdir(parents=True, exist_ok=True)
        for name, path in zip(chosen, paths, strict=True):
            _put(path, artifacts[name])
    except OSError as error:
        raise BackendError("artifact cannot be written", folder=where) from error
    return paths


def _checked(name: str) -> str:
    check_artifact_name(name)  # one path component: it cannot leave the folder
    return name


def _put(path: pathlib.Path, data: bytes) -> None:
    """Create a file whole, or leave the same content alone."""
    folder = LocalBackend(path.parent, check=_checked)
    try:
        folder.publish(path.name, [data], nbytes=len(data), overwrite=False, durable=False)
    except ConflictError:
        if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
            raise ConflictError(
                "something else has the name of this artifact: choose another folder",
                artifact=path.name,
                path=str(path),
            ) from None
