"""WebDAV: wsgidav, a real server in Python, on files."""

from __future__ import annotations

import pathlib

from tests.servers.running import INSTALLED, Command, Server, free_port

EXECUTABLE = INSTALLED / "bin" / "wsgidav"
CLIENT = "webdav4"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if EXECUTABLE.exists() else f"wsgidav is not installed in {INSTALLED.name}"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port, root = free_port(), folder / "files"
    line = [EXECUTABLE, "--host", "127.0.0.1", "--port", str(port), "--root", root]
    return Server(
        name="webdav",
        folder=folder,
        port=port,
        prepare=root.mkdir,
        commands=[
            Command(name="wsgidav", line=[*line, "--auth", "anonymous", "--server", "cheroot"]),
        ],
        root="webdav://stores",
        populate=(root / "stores").mkdir,
        options=lambda port: {"base_url": f"http://127.0.0.1:{port}"},
    )
