"""S3: OpenStack Swift through its s3api, a real server whose conditions race.

One of each service, one replica, everything in files below one folder.
"""

from __future__ import annotations

import pathlib

from tests.servers import s3
from tests.servers.running import INSTALLED, Command, Server, free_ports, http_status, run

BIN = INSTALLED / "bin"
KEY, SECRET = "test:tester", "testing"
STORES = ("account", "container", "object")
CLUSTER = """
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = single
default = yes
"""
STORE = """
[DEFAULT]
devices = {folder}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {folder}
fallocate_reserve = 0
log_address = {folder}/none
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
[{name}-updater]
interval = 5
"""
FILTERS = (
    "catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "s3api", "tempauth",
    "copy", "slo", "dlo", "versioned_writes", "symlink",
)  # fmt: skip
SETTINGS = {
    "versioned_writes": "allow_object_versioning = true",
    "s3api": "s3_acl = false\nlocation = us-east-1\nauth_pipeline_check = false",
    "tempauth": "user_test_tester = testing .admin",
}
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {folder}
log_address = {folder}/none
[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
"""
CLIENT = "s3fs"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if (BIN / "swift-proxy-server").exists() else f"swift is not in {INSTALLED.name}"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port, *ports = free_ports(4)
    services = dict(zip(STORES, ports, strict=True))
    environment = {"SWIFT_DIR": str(folder), "PATH": f"{BIN}:/usr/bin:/bin"}
    names = [*STORES, "proxy"]
    return Server(
        name="swift",
        folder=folder,
        port=port,
        prepare=lambda: _prepare(folder, port, services),
        commands=[
            Command(
                name=name,
                line=[BIN / f"swift-{name}-server", folder / f"{name}.conf"],
                environment=environment,
            )
            for name in names
        ],
        root=s3.ROOT,
        populate=lambda: s3.make_bucket(port, KEY, SECRET),
        options=lambda port: s3.options(port, KEY, SECRET),
        answers=lambda: http_status(f"http://127.0.0.1:{port}/healthcheck") == 200,
    )


def _prepare(folder: pathlib.Path, port: int, services: dict[str, int]) -> None:
    (folder / "devices" / "d1").mkdir(parents=True)
    user = folder.owner()
    (folder / "swift.conf").write_text(CLUSTER, encoding="utf-8")
    for name, at in services.items():
        text = STORE.format(folder=folder, port=at, user=user, name=name)
        (folder / f"{name}.conf").write_text(text, encoding="utf-8")
        builder = folder / f"{name}.builder"
        run(BIN / "swift-ring-builder", builder, "create", "2", "1", "0")
        run(BIN / "swift-ring-builder", builder, "add", f"r1z1-127.0.0.1:{at}/d1", "1")
        run(BIN / "swift-ring-builder", builder, "rebalance")
    filters = "".join(
        f"[filter:{name}]\nuse = egg:swift#{name}\n{SETTINGS.get(name, '')}\n"
        for name in FILTERS
    )
    text = PROXY.format(folder=folder, port=port, user=user, pipeline=" ".join(FILTERS))
    (folder / "proxy.conf").write_text(text + filters, encoding="utf-8")
