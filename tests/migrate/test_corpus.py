"""Every real checkpoint: told by its bytes, every array equal bit by bit, nothing left out."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import errors, migrate
from tests.migrate import corpus

ENTRIES = corpus.chosen()

# Their truth leaves arrays out: gradients, what stands in records, and trees altogether.
MORE = ("torchscript", "torch-tar", "torch-legacy", "torch-zip", "xgboost", "deepspeed-zero")


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_all_arrays_are_read_bit_by_bit(entry: corpus.Entry) -> None:
    for name, expected, found in corpus.cases(entry):
        assert corpus.missing(expected, found, entry.format) == {}, name
        if entry.format not in MORE:
            assert len(found) == len(expected), name


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_migrated_checkpoint_holds_every_array(
    entry: corpus.Entry, tmp_path: pathlib.Path
) -> None:
    source = migrate.open(entry.source())
    done = migrate.migrate(source, tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    stored = _digests(done.checkpoint)
    for item, (_, array) in zip(_arrays(done.report), source.arrays(), strict=True):
        whole = np.asarray(array)
        assert (array.shape, corpus.digest(whole)) in stored, item.path
    assert done.verified == len(done.checkpoint.arrays)


@pytest.mark.skipif(
    corpus.WHOLE is None, reason="CKPTFMT_CORPUS is not set: only tests/corpus was read"
)
def test_the_whole_corpus_is_there() -> None:
    assert len(corpus.chosen()) == 119 - (0 if corpus.HAS_H5PY else 15)


@pytest.mark.skipif(
    corpus.WHOLE is None, reason="CKPTFMT_CORPUS is not set: only tests/corpus was read"
)
@pytest.mark.parametrize("name", ["orbax-v0-damaged", "ggml-whisper-tiny"])
def test_what_cannot_be_read_is_refused_with_the_reason(name: str) -> None:
    rows = corpus.rows(pathlib.Path(corpus.WHOLE or ""))
    folder = pathlib.Path(corpus.WHOLE or "") / "files" / name

    with pytest.raises(errors.CheckpointError, match=corpus.UNREAD[rows[name]]):
        migrate.open(folder / "state" if name.startswith("orbax") else next(folder.iterdir()))


@pytest.mark.skipif(not corpus.HAS_H5PY, reason="h5py is not installed: no HDF5 was read")
def test_hdf5_is_among_them() -> None:
    assert any(entry.format in corpus.HDF5 for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_names_do_not_matter(entry: corpus.Entry, tmp_path: pathlib.Path) -> None:
    files = [file for file in entry.folder.rglob("*") if file.is_file()]
    if len(files) > 1:
        pytest.skip("a set of files is held together by their names")
    shutil.copy(files[0], tmp_path / "x.unknown")

    source = migrate.open(tmp_path / "x.unknown")

    assert source.format == migrate.open(files[0]).format


def test_formats_without_a_reader_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing that anybody knows, of some length")

    with pytest.raises(errors.UnsupportedError, match="no known checkpoint"):
        migrate.open(tmp_path / "x")


def _arrays(report: migrate.Report) -> list[migrate.Item]:
    return [item for item in report.items if item.kind == "array"]


def _digests(checkpoint: ckptfmt.Checkpoint) -> set[tuple[Any, str]]:
    found = {
        (info.shape, corpus.digest(np.asarray(checkpoint.lazy(path))))
        for path, info in checkpoint.arrays.items()
    }
    for _, leaf in ckptfmt.tree.paths(checkpoint.load()):
        if isinstance(leaf, np.generic):
            found.add(((), corpus.digest(np.asarray(leaf))))
    return found
