"""A probe goes wherever its checkpoint goes, and is no part of the state."""

from __future__ import annotations

import pathlib
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.checks import Probe
from ckptfmt.errors import StateError, UsageError
from ckptfmt.group import SocketGroup

W = np.arange(6, dtype=np.float32)
X = np.ones((2, 3), np.float32)


def probe(**changed: Any) -> Probe:
    given: dict[str, Any] = {
        "inputs": {"x": X, "mask": (True, None)},
        "outputs": [np.array([3, 1])],
        "prepared": X / 2,
        "dtype": "float32",
        "absolute": 1e-6,
        "relative": 1e-5,
        "deterministic": True,
        "about": {"framework": "none"},
    }
    return Probe(**{**given, **changed})


def same(found: Probe | None) -> bool:
    assert found is not None
    np.testing.assert_equal(found.tree(), probe().tree())
    return True


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> ckptfmt.Checkpoint:
    with ckptfmt.open(tmp_path / "run") as store:
        return store.save({"model": {"w": W}, "optimizer": {"m": W + 1}}, probe=probe())


def test_it_comes_back_and_is_not_in_the_state(saved: ckptfmt.Checkpoint) -> None:
    assert same(saved.probe())
    assert set(saved.load()) == {"model", "optimizer"}
    assert [s.name for s in saved.sections] == ["model", "optimizer", "~probe"]
    assert saved.verify().ok
    np.testing.assert_array_equal(saved["~probe/inputs/x"], X)


def test_without_one_there_is_none(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        assert store.save({"model": {"w": W}}).probe() is None


def test_a_bundle_carries_it_both_ways(
    saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path
) -> None:
    bundle = ckptfmt.pack(saved, tmp_path / "all.safetensors")
    assert same(bundle.probe())
    assert bundle.verify().ok
    light = ckptfmt.pack(saved, tmp_path / "light.safetensors", weights_only=True)
    assert light.probe() is None
    direct = ckptfmt.save({"w": W}, tmp_path / "direct.safetensors", probe=probe())
    assert same(direct.probe())
    with ckptfmt.open(tmp_path / "other") as store:
        assert same(ckptfmt.unpack(tmp_path / "all.safetensors", store).probe())
        assert ckptfmt.copy(tmp_path / "run", ckptfmt.open(tmp_path / "third")).numbers
    assert same(ckptfmt.open(tmp_path / "third").latest().probe())


def test_slimming_keeps_it(saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        store.slim(1, drop=["optimizer"])
        assert same(store[1].probe())
        with pytest.raises(UsageError, match="nothing would be left"):
            store.slim(1, drop=["model"])


def test_an_unchanged_probe_is_written_once(tmp_path: pathlib.Path) -> None:
    big = probe(inputs=np.zeros((1000, 1000), np.float32))
    with ckptfmt.open(tmp_path / "run") as store:
        store.save({"model": {"w": W}}, probe=big)
        second = store.save({"model": {"w": W + 1}}, probe=big)

    assert second.reused_bytes >= 4_000_000


def test_it_is_never_tied_to_the_state(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        ckpt = store.save({"model": {"x": X}}, probe=probe(inputs=X))

    assert ckpt.arrays["model/x"].aliases == ()
    assert ckpt.probe() is not None


def test_a_key_of_that_name_is_the_users(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        ckpt = store.save({"~probe": {"inputs": W}, "m": {"w": W + 1}}, probe=probe())

    np.testing.assert_array_equal(ckpt.load()["~probe"]["inputs"], W)
    assert same(ckpt.probe())


def test_a_background_save_has_a_copy(tmp_path: pathlib.Path) -> None:
    x = X.copy()
    with ckptfmt.open(tmp_path / "run") as store:
        pending = store.save_async({"model": {"w": W}}, probe=probe(inputs={"x": x}))
        x[:] = 7
        found = pending.wait().probe()

    assert found is not None
    np.testing.assert_array_equal(found.inputs["x"], X)


def test_what_is_no_probe_is_refused(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        with pytest.raises(UsageError, match="expected Probe"):
            store.save({"m": {}}, probe={"inputs": 1})  # type: ignore[arg-type]
        with pytest.raises(StateError) as caught:
            store.save({"m": {}}, probe=probe(outputs={"o": object()}))
        assert caught.value.where["path"] == "~probe/outputs/o"


def test_of_several_ranks_the_first_has_it(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]

    def save(rank: int) -> ckptfmt.Checkpoint:
        own = probe() if rank == 0 else probe(inputs={"x": X + rank})
        state = {"model": {"w": W}, "rank_local": {rank: {"r": W + rank}}}
        with SocketGroup(rank, 2, port=port) as group, ckptfmt.open(tmp_path / "run") as store:
            return store.save(state, group=group, probe=own)

    with ThreadPoolExecutor(2) as pool:
        for saved in pool.map(save, range(2)):
            assert same(saved.probe())
            assert saved.verify().ok
            assert set(saved.load()) == {"model", "rank_local"}
