"""S3: moto, an emulator in Python. Strict about conditions; keeps everything in memory."""

from __future__ import annotations

import pathlib

from tests.servers import s3
from tests.servers.running import INSTALLED, Command, Server, free_port, http_status

EXECUTABLE = INSTALLED / "bin" / "moto_server"
CLIENT = "s3fs"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if EXECUTABLE.exists() else f"moto is not installed in {INSTALLED.name}"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port = free_port()
    return Server(
        name="moto",
        folder=folder,
        port=port,
        commands=[
            Command(name="moto", line=[EXECUTABLE, "-H", "127.0.0.1", "-p", str(port)]),
        ],
        root=s3.ROOT,
        populate=lambda: s3.make_bucket(port, "key", "secret"),
        options=lambda port: s3.options(port, "key", "secret"),
        answers=lambda: http_status(f"http://127.0.0.1:{port}/moto-api/data.json") == 200,
    )
