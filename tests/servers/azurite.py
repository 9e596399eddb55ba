"""Azure Blob Storage: Azurite, Microsoft's emulator; files on disk."""

from __future__ import annotations

import pathlib
from typing import Any

from tests.servers.running import INSTALLED, Command, Server, free_port

EXECUTABLE = INSTALLED / "node" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT, KEY, CONTAINER = "account", "dGVzdC1rZXk=", "test-container"
CLIENT = "adlfs"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if EXECUTABLE.exists() else f"azurite is not installed in {INSTALLED.name}"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port = free_port()
    line: list[str | pathlib.Path] = [
        EXECUTABLE, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent",
        "--skipApiVersionCheck", "--disableTelemetry", "--location", folder / "blobs",
    ]  # fmt: skip
    accounts = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    return Server(
        name="azurite",
        folder=folder,
        port=port,
        prepare=(folder / "blobs").mkdir,
        commands=[Command(name="azurite", line=line, environment=accounts)],
        root=f"abfs://{CONTAINER}",
        populate=lambda: _make_container(port),
        options=_options,
    )


def _options(port: int) -> dict[str, Any]:
    return {
        "connection_string": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};"
        f"AccountKey={KEY};BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    }


def _make_container(port: int) -> None:
    from azure.storage.blob import BlobServiceClient

    text = _options(port)["connection_string"]
    with BlobServiceClient.from_connection_string(text) as client:
        client.create_container(CONTAINER)
