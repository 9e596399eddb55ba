"""What went wrong in other systems that save PyTorch runs, tried on ours.

Each trap was seen in a rival's code, in a probe of it or in its issues; `TRAPS` says which
test shows that it is none here. Those that need no torch are shown where the core is tested.
"""

from __future__ import annotations

import dataclasses
import errno
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from nets import bits, everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.backends import Backend, Buffer, Entry, LocalBackend, MemoryBackend
from ckptfmt.errors import BackendError, ConflictError
from ckptfmt.format import digest
from ckptfmt.testing import FaultyBackend

TESTS = pathlib.Path(__file__).parents[2]
HERE = "adapters/torch/test_traps.py"

TRAPS: dict[str, tuple[str, ...]] = {
    "an error in one writer thread leaves tensors out, and the save returns (DCP)": (
        f"{HERE}::test_an_error_in_one_thread_fails_the_save",
        "faults/test_local_backend.py::test_any_refusal_past_the_page_cache_falls_back",
    ),
    "an error in the background is never seen (VeOmni, Orbax)": (
        f"{HERE}::test_an_error_in_the_background_reaches_close",
        "adapters/torch/test_looping.py::test_a_background_save_that_fails_is_raised",
    ),
    "a checkpoint is overwritten in place, two saves mix (DCP, torchsnapshot)": (
        f"{HERE}::test_nothing_that_was_written_is_written_again",
        f"{HERE}::test_two_jobs_in_one_folder_do_not_mix",
    ),
    "files get the mode 0600 of a private temporary file (safetensors)": (
        f"{HERE}::test_files_have_the_mode_of_any_other_file",
        "faults/test_permissions.py::test_new_files_respect_the_umask",
    ),
    "temporary files stay behind (torch_checkpointing)": (
        f"{HERE}::test_a_failed_save_leaves_nothing_behind",
        "unit/backends/test_local.py::test_old_leftovers_of_dead_processes_are_removed",
    ),
    "O_DIRECT refuses lengths that are not aligned (torch_checkpointing)": (
        f"{HERE}::test_tensors_of_any_length_past_the_page_cache",
        "faults/test_local_backend.py::test_any_refusal_past_the_page_cache_falls_back",
    ),
    "an asynchronous save shares the memory of CPU tensors (pytorch#144657)": (
        "adapters/torch/test_running.py::test_a_background_save_holds_the_moment_of_the_call",
    ),
    "optimizer.step() needs a lock while a save is staged (torch_checkpointing)": (
        f"{HERE}::test_training_goes_on_at_once_behind_a_background_save",
    ),
    "the old checkpoint is removed before the new one is there (Lightning, accelerate)": (
        f"{HERE}::test_at_every_change_of_storage_a_whole_checkpoint_is_there",
    ),
    "replacing the commit object leaves a moment without one (DCP on fsspec)": (
        f"{HERE}::test_at_every_change_of_storage_a_whole_checkpoint_is_there",
        f"{HERE}::test_nothing_that_was_written_is_written_again",
    ),
    "the folder with the highest number is resumed, whole or not (transformers)": (
        f"{HERE}::test_what_is_not_committed_is_not_resumed",
    ),
    "each checkpoint is probed for, one by one (torchtitan)": (
        f"{HERE}::test_the_newest_is_found_by_one_listing",
    ),
    "mapped files on a network kill the process (TensorRT-LLM#17368)": (
        f"{HERE}::test_nothing_is_mapped_unasked",
    ),
    "0-dim, empty, strided, shared, bf16, fp8, fp4, complex or quantised tensors": (
        "adapters/torch/test_tensors.py::test_every_dtype_keeps_every_bit",
        "adapters/torch/test_tensors.py::test_memory_layouts_are_kept",
        "adapters/torch/test_tensors.py::test_conjugate_and_negative_views",
        "adapters/torch/test_tensors.py::test_tied_tensors_are_stored_once_and_stay_tied",
        "adapters/torch/test_tensors.py::test_what_cannot_be_stored_is_refused_with_the_way_out",
        "adapters/torch/test_tensors.py::test_quantised_tensors_are_refused",
    ),
    "names of dtypes depend on a library's version": (
        f"{HERE}::test_names_of_dtypes_are_those_of_the_specification",
    ),
    "the CUDA generator's state has 816 or 16 bytes": (
        "adapters/torch/test_generators.py::test_both_layouts_of_cuda_are_understood",
    ),
    "numpy 2 moved the module that pickles name": (
        f"{HERE}::test_nothing_stored_names_a_module",
    ),
    "later releases add settings to optimizers (AdamW's decoupled_weight_decay)": (
        "adapters/torch/test_optimizers.py"
        "::test_settings_that_came_later_are_filled_as_torch_fills_them",
        "adapters/torch/test_optimizers.py::test_settings_of_another_release_are_reported",
    ),
    "an optimizer makes its state at the first step (xtuner#2018)": (
        f"{HERE}::test_state_that_the_optimizer_has_not_made_yet_is_restored",
        "adapters/torch/test_optimizers.py::test_state_that_was_not_there_when_saved_goes",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_tests(trap: str) -> None:
    for where in TRAPS[trap]:
        file, name = where.split("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text("utf-8"), where


class Watched:
    """A backend in memory that calls `after` with each change, and counts what is asked."""

    def __init__(self, after: Callable[[str, str], None] = lambda call, key: None) -> None:
        self._inner = MemoryBackend()
        self._after = after
        self.calls: Counter[str] = Counter()
        self.url = self._inner.url
        self.capabilities = self._inner.capabilities

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        self._inner.create(key, data, durable=durable)
        self._after("create", key)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        self._inner.replace(key, data, durable=durable)
        self._after("replace", key)

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        self._inner.write(key, blocks, nbytes=nbytes, durable=durable)
        self._after("write", key)

    def delete(self, key: str) -> None:
        self._inner.delete(key)
        self._after("delete", key)

    def list(self, prefix: str) -> dict[str, Entry]:
        self.calls[f"list {prefix}"] += 1
        return self._inner.list(prefix)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        self.calls["read"] += 1
        return self._inner.read(key, offset, nbytes)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self._inner.read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        self.calls["map"] += 1
        return self._inner.map(key, offset, nbytes)


def trained(steps: int = 2) -> dict[str, Any]:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    train(model, optimizer, steps)
    return {"model": model, "optimizer": optimizer}


def test_an_error_in_one_thread_fails_the_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread of several meets a full disk: no checkpoint, and the error is raised."""
    store = ckptfmt.open(MemoryBackend(), threads=3)
    model = nn.ParameterList(torch.zeros(2**20) for _ in range(12))
    ckptfmt_torch.save(store, model=model)
    real = digest.DIGESTS["xxh3-128"]
    unlucky: set[str] = set()

    def of(data: Buffer) -> bytes:
        name = threading.current_thread().name
        if name != "MainThread" and not unlucky:
            unlucky.add(name)
            raise OSError(errno.ENOSPC, "no space left on device")
        return real.of(data)

    monkeypatch.setitem(digest.DIGESTS, "xxh3-128", dataclasses.replace(real, of=of))
    with torch.no_grad():
        for parameter in model:
            parameter.add_(1)
    with pytest.raises(OSError, match="no space"):
        ckptfmt_torch.save(store, model=model)
    monkeypatch.undo()

    assert len(unlucky) == 1
    assert [checkpoint.number for checkpoint in store] == [1]
    assert ckptfmt_torch.save(store, model=model).verify().ok


@pytest.mark.parametrize("act", ["close", "save"])
def test_an_error_in_the_background_reaches_close(act: str) -> None:
    full = OSError(errno.ENOSPC, "no space left on device")
    store = ckptfmt.open(FaultyBackend(MemoryBackend(), at=3, error=full))
    pending = ckptfmt_torch.save(store, background=True, **trained())
    assert isinstance(pending, ckptfmt.PendingSave)

    with pytest.raises(BackendError) as caught:
        store.close() if act == "close" else ckptfmt_torch.save(store, **trained())

    assert caught.value.__cause__ is full


def test_nothing_that_was_written_is_written_again() -> None:
    """Not a data file, not a commit: each has a name of its own, for ever."""
    made: Counter[str] = Counter()

    def after(call: str, key: str) -> None:
        if call != "delete" and key.startswith(("data/", "manifests/")):
            made[key] += 1

    store = ckptfmt.open(Watched(after))
    run = trained()
    for _ in range(3):
        ckptfmt_torch.save(store, **run)
        train(run["model"], run["optimizer"], 1)

    assert len(made) >= 6
    assert set(made.values()) == {1}
    assert [checkpoint.number for checkpoint in store] == [1, 2, 3]


def test_two_jobs_in_one_folder_do_not_mix() -> None:
    backend = MemoryBackend()
    first, second = ckptfmt.open(backend), ckptfmt.open(backend)
    ckptfmt_torch.save(first, **trained(1))
    ckptfmt_torch.save(second, **trained(2))

    with pytest.raises(ConflictError, match="another writer"):
        ckptfmt_torch.save(first, **trained(3))

    for number, steps in ((1, 1), (2, 2)):
        run = trained(5)
        ckptfmt_torch.restore(second[number], **run)
        assert everything(*run.values())[:-1] == everything(*trained(steps).values())[:-1]


def test_files_have_the_mode_of_any_other_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").touch()
    expected = (tmp_path / "other").stat().st_mode
    with ckptfmt.open(tmp_path / "run") as store:
        ckptfmt_torch.save(store, **trained())

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert {path.stat().st_mode for path in files} == {expected}


@pytest.mark.parametrize("at", range(1, 7))
def test_a_failed_save_leaves_nothing_behind(tmp_path: pathlib.Path, at: int) -> None:
    """Or, where it is not known whether the commit arrived, the next save removes it."""
    backend = LocalBackend(tmp_path / "run")
    ckptfmt_torch.save(ckptfmt.open(backend), **trained())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    full = OSError(errno.ENOSPC, "no space left on device")
    store = ckptfmt.open(FaultyBackend(backend, at=at, error=full))

    try:
        ckptfmt_torch.save(store, **trained(3))
        known = len(store) == 2  # it failed after the commit, or not at all
    except BackendError as error:
        left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        known = not left or "outcome of the commit is unknown" in str(error)
    assert known

    with ckptfmt.open(backend) as after:
        ckptfmt_torch.save(after, **trained(3))
        assert after.leftovers() == []
    assert not list((tmp_path / "run" / "intents").iterdir())


def test_tensors_of_any_length_past_the_page_cache(tmp_path: pathlib.Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for nbytes in (1, 511, 513, 4095, 4097, 70_001):
                values = torch.arange(nbytes, dtype=torch.int64).to(torch.uint8)
                self.register_buffer(f"t{nbytes}", values)

    store = ckptfmt.open(LocalBackend(tmp_path / "run", direct_nbytes=1))
    saved = ckptfmt_torch.save(store, model=Odd())
    other = Odd()
    for buffer in other.buffers():
        buffer.zero_()
    ckptfmt_torch.restore(saved, model=other)

    assert bits(other.state_dict()) == bits(Odd().state_dict())


def test_training_goes_on_at_once_behind_a_background_save() -> None:
    """Steps are taken while the write is held up; no lock, and the old bits are stored."""
    free = threading.Event()

    def after(call: str, key: str) -> None:
        if call == "create" and key.startswith("intents/"):
            assert free.wait(60)

    store = ckptfmt.open(Watched(after))
    run = trained()
    expected = bits([one.state_dict() for one in run.values()])
    pending = ckptfmt_torch.save(store, background=True, **run)
    assert isinstance(pending, ckptfmt.PendingSave)
    train(run["model"], run["optimizer"], 3)
    assert not pending.done()
    free.set()

    other = trained(1)
    ckptfmt_torch.restore(pending.wait(), **other)
    assert bits([one.state_dict() for one in other.values()]) == expected


@pytest.mark.parametrize("background", [False, True])
def test_at_every_change_of_storage_a_whole_checkpoint_is_there(background: bool) -> None:
    """keep(last=1): whoever looks, at any moment, finds one that loads; removals come last."""
    looks: list[int] = []
    looking = threading.Lock()

    def after(call: str, key: str) -> None:
        if looks and looking.acquire(blocking=False):
            with ckptfmt.open(backend) as reader:
                ckptfmt_torch.restore(reader.latest(), **trained(1), rng=False)
            looks.append(reader.latest().number)
            looking.release()

    backend: Backend = Watched(after)
    run = trained()
    with ckptfmt.open(backend, keep=ckptfmt.keep(last=1)) as store:
        ckptfmt_torch.save(store, **run)
        looks.append(1)
        for _ in range(4):
            train(run["model"], run["optimizer"], 1)
            ckptfmt_torch.save(store, background=background, **run)

    assert [checkpoint.number for checkpoint in store] == [5]
    assert len(looks) > 12
    assert looks == sorted(looks)


def test_what_is_not_committed_is_not_resumed(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        saved = ckptfmt_torch.save(store, counters={"seen": 5}, **trained())
    assert isinstance(saved, ckptfmt.Checkpoint)
    (tmp_path / "run" / "checkpoint-9999").mkdir()
    (tmp_path / "run" / "data" / "ffffffffffffffffffffffff-model-0.safetensors").write_bytes(
        b"half of a file"
    )
    manifest = next((tmp_path / "run" / "manifests").iterdir())
    half = manifest.read_bytes()[: manifest.stat().st_size // 2]
    manifest.with_name(manifest.name.replace("0000000001", "0000000009")).write_bytes(half)

    with ckptfmt.open(tmp_path / "run") as store:
        found = ckptfmt_torch.resume(store, **trained(1))

    assert found is not None
    assert found[0].id == saved.id


def test_the_newest_is_found_by_one_listing() -> None:
    backend = Watched()
    store = ckptfmt.open(backend)
    for _ in range(12):
        ckptfmt_torch.save(store, **trained(1))
    backend.calls.clear()

    ckptfmt_torch.restore(ckptfmt.open(backend).latest(), **trained(1))

    assert backend.calls["list manifests"] == 1
    assert backend.calls["list data"] <= 1
    assert backend.calls["read"] < 12  # not one for each checkpoint


def test_nothing_is_mapped_unasked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps: list[str] = []
    real = LocalBackend.map

    def mapping(own: LocalBackend, key: str, offset: int, nbytes: int) -> memoryview:
        maps.append(key)
        return real(own, key, offset, nbytes)

    monkeypatch.setattr(LocalBackend, "map", mapping)
    store = ckptfmt.open(tmp_path / "run")
    ckptfmt_torch.restore(ckptfmt_torch.save(store, **trained()), **trained(1))
    store.latest().load()
    assert [key for key in maps if key.startswith("data/")] == []

    store.latest().load(mmap=True)
    assert [key for key in maps if key.startswith("data/")] != []


def test_names_of_dtypes_are_those_of_the_specification(store: ckptfmt.Store) -> None:
    """The words of the safetensors format, whatever torch or NumPy call them."""
    words = {
        torch.float32: "F32", torch.float64: "F64", torch.float16: "F16",
        torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
        torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    }  # fmt: skip
    spec = (TESTS.parent / "spec" / "v1.md").read_text("utf-8")
    model = nn.Module()
    for dtype in words:
        model.register_buffer(f"a {dtype}".replace(".", " "), torch.zeros(2, dtype=dtype))
    saved = ckptfmt_torch.save(store, model=model)
    assert isinstance(saved, ckptfmt.Checkpoint)

    tables = saved.manifest.tables
    found = {
        path: tables.dtypes[tables.dtype[row]].name
        for row, path in enumerate(tables.paths)
        if path.startswith("model/")
    }
    assert set(words.values()) <= set(spec.split())
    assert found == {f"model/a {d}".replace(".", " "): word for d, word in words.items()}


def test_nothing_stored_names_a_module(tmp_path: pathlib.Path) -> None:
    np.random.standard_normal()
    with ckptfmt.open(tmp_path / "run") as store:
        ckptfmt_torch.save(store, generators={"own": np.random.default_rng(1)}, **trained())

    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"numpy.core" not in content
            assert b"numpy._core" not in content
            assert b"cnumpy" not in content


def test_state_that_the_optimizer_has_not_made_yet_is_restored(store: ckptfmt.Store) -> None:
    run = trained()
    saved = ckptfmt_torch.save(store, **run)
    expected = train(run["model"], run["optimizer"], 3), everything(*run.values())
    torch.manual_seed(9)
    other = net()
    fresh = torch.optim.AdamW(other.parameters(), amsgrad=True)
    assert not fresh.state

    ckptfmt_torch.restore(saved, model=other, optimizer=fresh)

    assert (train(other, fresh, 3), everything(other, fresh)) == expected
