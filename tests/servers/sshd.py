"""SFTP: OpenSSH, the real server, with keys and configuration of its own."""

from __future__ import annotations

import getpass
import pathlib
import shutil

from tests.servers.running import Command, Server, free_port, run

CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
MaxStartups 100
"""
CLIENT = "paramiko"


def lacking() -> str:
    """Return what is missing, or ""."""
    return "" if _executable() else "OpenSSH's sshd is not installed"


def make(folder: pathlib.Path) -> Server:
    """Return the server."""
    port = free_port()

    def prepare() -> None:
        (folder / "files").mkdir()
        for name in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        configuration = CONFIGURATION.format(port=port, folder=folder)
        (folder / "sshd_config").write_text(configuration, encoding="utf-8")
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # it refuses to start without

    line = [_executable(), "-D", "-e", "-f", folder / "sshd_config"]
    return Server(
        name="sshd",
        folder=folder,
        port=port,
        prepare=prepare,
        commands=[Command(name="sshd", line=line)],
        root=f"sftp://127.0.0.1{folder}/files",
        options=lambda port: {
            "port": port,
            "username": getpass.getuser(),
            "key_filename": str(folder / "user_key"),
            "look_for_keys": False,
            "allow_agent": False,
        },
    )


def _executable() -> str:
    return shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
