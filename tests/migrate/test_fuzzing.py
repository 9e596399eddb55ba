"""The fuzzer leaves no reader out, and begins with inputs that are read; see `make fuzz`."""

from __future__ import annotations

import pathlib

import pytest

from ckptfmt.errors import FormatError
from ckptfmt.migrate import apart, registry
from ckptfmt.migrate.files import Span
from tests.fuzz import targets
from tests.migrate import corpus

REFUSES = "ggml"  # reads nothing


def test_every_reader_is_fuzzed() -> None:
    assert {target.reader for target in targets.TARGETS.values()} == set(registry.READERS)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_the_fuzzer_begins_with_what_is_read(name: str) -> None:
    target = targets.TARGETS[name]
    if target.reader == "hdf5" and not corpus.HAS_H5PY:
        pytest.skip("h5py is not installed: no HDF5 was read")

    assert any(target.run(seed) for seed in target.seeds()) is (name != REFUSES)


def test_hdf5_inside_the_fuzzer_is_that_of_the_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: no HDF5 was read")
    from tests.fuzz import inside

    monkeypatch.setattr("ckptfmt.migrate.h5walk._limit", lambda nbytes: None)
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("a", data=[[1.5] * 40] * 30, compression="gzip")
        file.attrs["text"] = "some"
    whole = Span("x", memoryview((tmp_path / "x").read_bytes()))
    cut = Span("x", whole.data[:-500])

    assert inside.ask(whole) == apart.ask(whole)
    arrays = bytearray(9600), bytearray(9600)
    for ask, into in zip((inside.ask, apart.ask), arrays, strict=True):
        assert ask(whole, "/a", memoryview(into)) == ["value", None]
        with pytest.raises(FormatError) as caught:
            ask(cut)
        assert caught.value.where["problem"].startswith("OSError")
    assert arrays[0] == arrays[1] != bytes(9600)
