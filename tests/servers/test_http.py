"""A store that a web server shows for reading: nginx, with listings."""

from __future__ import annotations

import functools
import http.server
import pathlib
import threading

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

    with pytest.raises(BackendError, match="it can only be read"):
        store.save(work.state(2))

    assert [found.number for found in ckptfmt.open(nginx.folder / "files" / "other")] == [1]


def test_a_web_server_that_knows_no_ranges_is_read_all_the_same(tmp_path: pathlib.Path) -> None:
    """As `python -m http.server`: it answers with the whole file."""
    pytest.importorskip("aiohttp")
    local = ckptfmt.open(tmp_path / "store")
    work.save(local, 1)
    show = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), show) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            store = ckptfmt.open(f"http://127.0.0.1:{server.server_port}/store")

            assert_same(store.latest().load(), work.state(1))
            part = np.asarray(store.latest()["optimizer/m"][7:9])
            assert part.tobytes() == work.state(1)["optimizer"]["m"][7:9].tobytes()
            with pytest.raises(BackendError, match="it can only be read"):
                store.save(work.state(2))
        finally:
            server.shutdown()
            thread.join()
