"""HTTP: nginx, which serves the files of a store for reading."""

from __future__ import annotations

import pathlib
import shutil

from tests.servers.running import Command, Server, free_port

CONFIGURATION = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        location / {{ autoindex on; }}
    }}
}}
"""
CLIENT = "aiohttp"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if _executable() else "nginx is not installed"


def make(folder: pathlib.Path) -> Server:
    """Return the server; what it serves is put into `folder / "files"`."""
    port = free_port()

    def prepare() -> None:
        (folder / "files").mkdir()
        owner = folder.owner()
        configuration = CONFIGURATION.format(port=port, folder=folder, user=owner)
        (folder / "nginx.conf").write_text(configuration, encoding="utf-8")

    line = [_executable(), "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]
    return Server(
        name="nginx",
        folder=folder,
        port=port,
        prepare=prepare,
        commands=[Command(name="nginx", line=line)],
        root=f"http://127.0.0.1:{port}",
        options=lambda port: {},
    )


def _executable() -> str:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
