"""Copies to servers, from one to another and back: same identities, and nothing twice."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import open_backend
from ckptfmt.testing.strategies import assert_same
from tests.servers.conftest import Servers, system


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": {"w": np.arange(90_000.0)},
        "optimizer": {"m": rng.standard_normal(50_000)},
    }


@pytest.mark.parametrize("server", ["moto", "gcs", *system("azurite", "ceph", "swift", "sshd")])
def test_there_and_back(servers: Servers, server: str, tmp_path: pathlib.Path) -> None:
    place, other = servers.place(server), servers.place(server)
    near = ckptfmt.open(tmp_path / "a")
    saved = [near.save(state(seed)) for seed in (1, 2)]
    near.tag(1, "good")
    stores = [
        ckptfmt.open(open_backend(p.url, storage_options=p.options())) for p in (place, other)
    ]

    ckptfmt.copy(near, stores[0], numbers=[1])
    again = ckptfmt.copy(near, stores[0])
    ckptfmt.copy(stores[0], stores[1])
    ckptfmt.copy(stores[1], tmp_path / "b")

    assert (again.numbers, again.present) == ((2,), (1,))
    assert len(again.files) < len(saved[1].manifest.tables.files)
    for store in (*stores, ckptfmt.open(tmp_path / "b")):
        assert [c.identity for c in store] == [c.identity for c in saved]
        assert store[1].tags == ("good",)
        assert_same(store.latest().load(), state(2))
        assert store.backend.list("intents") == {}


@pytest.mark.parametrize("server", ["moto", "gcs", *system("azurite", "ceph", "swift", "sshd")])
def test_a_mirror_and_a_cache(servers: Servers, server: str, tmp_path: pathlib.Path) -> None:
    place = servers.place(server)
    far = ckptfmt.open(place.url, storage_options=place.options())
    rules = ckptfmt.keep(last=1)
    with ckptfmt.open(tmp_path / "near", mirror=far, keep=rules) as store:
        saved = [store.save(state(seed)) for seed in (1, 2, 3)]

    assert [c.number for c in ckptfmt.open(tmp_path / "near")] == [3]
    with ckptfmt.open(
        place.url, storage_options=place.options(), cache=tmp_path / "cache"
    ) as store:
        for _ in range(2):
            assert [c.identity for c in store] == [c.identity for c in saved]
            assert_same([c.load() for c in store], [state(1), state(2), state(3)])
