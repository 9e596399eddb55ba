"""S3: Ceph's radosgw, a real server: one monitor, one object store in a file, one gateway."""

from __future__ import annotations

import pathlib
import shutil
import uuid

from tests.servers import s3
from tests.servers.running import Command, Server, free_ports, http_status, run

KEY, SECRET = "accesskey", "secretkey"
DISK_NBYTES = 20 << 30  # the file is sparse
CONFIGURATION = """
[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{monitor}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
mon max pg per osd = 1000
run dir = {folder}
admin socket = {folder}/$name.asok
ms bind ipv6 = false
ms bind port min = {first}
ms bind port max = {last}
[mon]
mon data = {folder}/mon
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = {nbytes}
osd memory target = 939524096
[client]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw thread pool size = 64
rgw data = {folder}/rgw
"""
NEEDED = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "ceph")
CLIENT = "s3fs"


def lacking() -> str:
    """Return what is missing, or ""."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"Ceph is not installed: no {', '.join(missing)}" if missing else ""


def make(folder: pathlib.Path) -> Server:
    """Return the server. Its gateway keeps nothing; killing it alone is quick to mend."""
    port, monitor, *ports = free_ports(22)
    line: list[str | pathlib.Path] = ["-f", "-c", folder / "ceph.conf"]
    user: list[str | pathlib.Path] = ["--setuser", folder.parent.owner()]
    user += ["--setgroup", folder.parent.group()]
    server = Server(
        name="ceph",
        folder=folder,
        port=port,
        commands=[
            Command(name="monitor", line=["ceph-mon", "-i", "a", *line, *user]),
            Command(name="store", line=["ceph-osd", "-i", "0", *line, *user]),
            Command(name="gateway", line=["radosgw", "-n", "client.admin", *line, *user]),
        ],
        prepare=lambda: _prepare(server, monitor, ports),
        root=s3.ROOT,
        populate=lambda: s3.make_bucket(port, KEY, SECRET),
        options=lambda port: s3.options(port, KEY, SECRET),
        answers=lambda: http_status(f"http://127.0.0.1:{port}/") == 200,
    )
    return server


def _prepare(server: Server, monitor: int, ports: list[int]) -> None:
    """Make the keys and the stores; the monitor and the store run while a user is made."""
    folder = server.folder
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    cluster, configuration = str(uuid.uuid4()), folder / "ceph.conf"
    text = CONFIGURATION.format(
        cluster=cluster, folder=folder, monitor=monitor, port=server.port, nbytes=DISK_NBYTES,
        first=ports[0], last=ports[-1],
    )  # fmt: skip
    configuration.write_text(text, encoding="utf-8")
    everything = [
        "--cap",
        "mon",
        "allow *",
        "--cap",
        "osd",
        "allow *",
        "--cap",
        "mgr",
        "allow *",
    ]
    for name in ("mon.", "client.admin", "osd.0"):
        create = [] if (folder / "keyring").exists() else ["--create-keyring"]
        run("ceph-authtool", *create, folder / "keyring", "--gen-key", "-n", name, *everything)
    address = f"[v2:127.0.0.1:{monitor}]"
    run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, folder / "map")
    conf: list[str | pathlib.Path] = ["-c", configuration]
    keys: list[str | pathlib.Path] = ["--keyring", folder / "keyring"]
    run("ceph-mon", *conf, "-i", "a", "--mkfs", "--monmap", folder / "map", *keys)
    monitor_command, store_command, _ = server.commands
    server.launch(monitor_command)
    disk = str(uuid.uuid4())
    run("ceph", *conf, "osd", "new", disk)
    run("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", disk)
    run("ceph", *conf, "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
    server.launch(store_command)
    user = ["--uid", "tester", "--display-name", "tester"]
    run(
        "radosgw-admin", *conf, "user", "create", *user,
        "--access-key", KEY, "--secret-key", SECRET,
    )  # fmt: skip
