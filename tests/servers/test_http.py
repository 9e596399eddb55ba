"""A store that a web server shows for reading: nginx, with listings."""

from __future__ import annotations

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import BackendError
from ckptfmt.testing.strategies import assert_same
from tests.servers import work
from tests.servers.conftest import Servers


@pytest.mark.server
def test_a_store_is_read_and_verified_over_http(servers: Servers) -> None:
    nginx = servers["nginx"]
    local = ckptfmt.open(nginx.folder / "files" / "store")
    work.save(local, 1)
    work.save(local, 2)

    store = ckptfmt.open(f"{nginx.root}/store")

    assert [found.number for found in store] == [1, 2]
    assert_same(store.latest().load(), work.state(2))
    assert_same(store[1].load(), work.state(1))
    part = store.latest()["optimizer/m"][7:9]
    assert np.asarray(part).tobytes() == work.state(2)["optimizer"]["m"][7:9].tobytes()
    assert store.latest().verify().ok


@pytest.mark.server
def test_nothing_is_stored_over_http(servers: Servers) -> None:
    nginx = servers["nginx"]
    work.save(ckptfmt.open(nginx.folder / "files" / "other"), 1)
    store = ckptfmt.open(f"{nginx.root}/other")

    with pytest.raises(BackendError):
        store.save(work.state(2))

    assert [found.number for found in ckptfmt.open(nginx.folder / "files" / "other")] == [1]
