"""Install the servers that `make test-servers` runs; print the names of those now there.

Program: `python -m tests.servers.install [NAME ...]`, all of them by default. On Debian and its
kin, as root, all of them are expected: what cannot be installed there is a failure. Elsewhere
those already there are used, and what is lacking is said on standard error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Final

from tests.servers import azurite, ceph, nginx, sshd, swift
from tests.servers.running import INSTALLED

MODULES: Final[dict[str, types.ModuleType]] = {
    "azurite": azurite,
    "ceph": ceph,
    "nginx": nginx,
    "sshd": sshd,
    "swift": swift,
}
PACKAGES: Final = {  # of Debian
    "ceph": ("ceph-base", "ceph-common", "ceph-mon", "ceph-osd", "radosgw"),
    "nginx": ("nginx-light",),
    "sshd": ("openssh-server",),
}
AZURITE: Final = "azurite@3.35.0"
SWIFT: Final = "swift==2.38.3"


def main(names: Sequence[str]) -> int:
    """Install what is lacking where that is possible."""
    modules = {name: MODULES[name] for name in names or MODULES}
    apt = shutil.which("apt-get") is not None and os.geteuid() == 0
    lacking = [name for name, module in modules.items() if module.lacking()]
    wanted = [package for name in lacking for package in PACKAGES.get(name, ())]
    if "azurite" in lacking and shutil.which("npm") is None:
        wanted.append("npm")
    if wanted and apt:
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted)
    if "azurite" in lacking and shutil.which("npm") is not None:
        _run(
            "npm", "install", "--no-audit", "--no-fund", "--prefix", INSTALLED / "node", AZURITE
        )
    if "swift" in lacking:
        _run(INSTALLED / "bin" / "python", "-m", "pip", "install", "--quiet", SWIFT)
    reasons = {name: module.lacking() for name, module in modules.items()}
    for reason in filter(None, reasons.values()):
        print(f"NOT TESTED HERE: {reason}", file=sys.stderr)
    print(",".join(name for name, reason in reasons.items() if not reason))
    return 1 if apt and any(reasons.values()) else 0


def _run(*line: object) -> None:
    """Run a command whose output is for people; one that fails shows in what is lacking."""
    print("+", *line, file=sys.stderr)
    # RUNLEVEL: the packages' own services stay off.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run([str(part) for part in line], env=environment, stdout=2, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
