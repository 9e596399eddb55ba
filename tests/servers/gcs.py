"""Google Cloud Storage: gcp-storage-emulator with the conditions that a commit needs."""

from __future__ import annotations

import pathlib
from typing import Any

from tests.servers.running import INSTALLED, Command, Server, free_port, http_status

BUCKET = "test-bucket"
PYTHON = INSTALLED / "bin" / "python"
PROGRAM = pathlib.Path(__file__).with_name("gcs_program.py")
CLIENT = "gcsfs"


def lacking() -> str:
    """Return what is missing, or ""."""
    installed = (INSTALLED / "bin" / "gcp-storage-emulator").exists()
    return "" if installed else f"gcp-storage-emulator is not installed in {INSTALLED.name}"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port = free_port()
    return Server(
        name="gcs",
        folder=folder,
        port=port,
        commands=[Command(name="gcs", line=[PYTHON, PROGRAM, str(port)])],
        root=f"gs://{BUCKET}",
        populate=lambda: _make_bucket(port),
        options=_options,
        answers=lambda: http_status(f"http://127.0.0.1:{port}/storage/v1/b?project=t") == 200,
    )


def _options(port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}"
    return {"token": "anon", "project": "t", "endpoint_url": url}


def _make_bucket(port: int) -> None:
    import gcsfs

    gcsfs.GCSFileSystem(**_options(port), skip_instance_cache=True).mkdir(BUCKET)
