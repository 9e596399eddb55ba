"""Find out what machine, libraries and code this process runs on.

Reads a few files and asks the standard library; starts no process, imports nothing that the
program has not imported. Whatever cannot be found out is None, and never an exception.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from ckptfmt.checks import git, redact
from ckptfmt.checks.changes import normalised

# Read only if the program has imported them: `import torch` would cost seconds.
FRAMEWORKS: Final = ("jax", "keras", "tensorflow", "torch")

# Instruction sets between which BLAS and SIMD kernels choose, x86 first, then ARM.
CPU_FEATURES: Final = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip

NVIDIA: Final = "/proc/driver/nvidia"


def describe() -> dict[str, object]:
    """Return, as plain data, what does not change while a process lives.

    Takes tens of milliseconds, most of it for the list of installed distributions.
    """
    return {
        "python": {
            "version": platform.python_version(),
            "implementation": sys.implementation.name,
        },
        "system": {
            "os": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "libc": _libc(),
            "distribution": _distribution(),
        },
        "cpu": _cpu(),
        "accelerator": _accelerator(),
        "numpy": _numpy(),
        "distributions": dict(sorted(_installed())),
        "git": git.describe(),
    }


def imported() -> dict[str, str]:
    """Return the version of each of `FRAMEWORKS` that this process has imported so far."""
    found: dict[str, str] = {}
    for name in FRAMEWORKS:
        module = sys.modules.get(name)
        if isinstance(module, types.ModuleType):
            # vars(), not getattr(): a lazy module would start importing.
            version = vars(module).get("__version__")
            if isinstance(version, str):
                found[name] = redact.text(str(version))
    return found


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):  # another libc, or another system
        return None


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _cpu() -> dict[str, object]:
    rows = re.findall(
        r"^([^:\n]*?)\s*:[ \t]*(.*)$", _read("/proc/cpuinfo", 65536), re.MULTILINE
    )
    first = dict(reversed(rows))  # of equal names the first processor's
    has = set((first.get("flags") or first.get("Features") or "").split())
    part = "/".join(filter(None, (first.get("CPU implementer"), first.get("CPU part"))))
    # On Windows a look-up; elsewhere platform.processor() may start a process.
    other = platform.processor() if platform.system() == "Windows" else None
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": first.get("model name") or part or other or None,
        "features": [name for name in CPU_FEATURES if name in has] if has else None,
        "count": os.cpu_count(),
        "usable": len(affinity(0)) if affinity else None,
    }


def _accelerator() -> dict[str, object]:
    """Say what the driver says of itself; the frameworks' own view is the adapters'."""
    version = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", _read(f"{NVIDIA}/version", 4096))
    try:
        cards = sorted(os.listdir(f"{NVIDIA}/gpus"))
    except OSError:
        cards = []
    models = (
        re.search(r"^Model:\s*(.+)$", _read(f"{NVIDIA}/gpus/{card}/information", 4096), re.M)
        for card in cards
    )
    found = [match[1].strip() for match in models if match]
    return {"driver": version[1] if version else None, "devices": found or None}


def _numpy() -> dict[str, object]:
    try:
        config: object = np.show_config(mode="dicts")
    except TypeError:  # before 1.25 it only prints
        config = None
    blas = _inside(config, "Build Dependencies", "blas")
    simd = _inside(config, "SIMD Extensions").get("found")
    return {
        "version": np.__version__,
        "blas": blas.get("name"),
        "blas_version": blas.get("version"),
        "simd": [str(name) for name in simd] if isinstance(simd, list) else None,
    }


def _inside(table: object, *names: str) -> Mapping[str, object]:
    """Return the dict below `names`, or an empty one: NumPy promises no form of its report."""
    for name in names:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table if isinstance(table, Mapping) else {}


def _installed() -> Iterator[tuple[str, str]]:
    """Yield (name, version); of several with one name the one that an import would find."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
        except (OSError, ValueError, LookupError, TypeError):
            continue  # a broken installation of something is no reason to fail a save
        fields = metadata_fields(text or "")
        name, version = fields.get("name"), fields.get("version")
        if name and version and normalised(name) not in seen:
            seen.add(normalised(name))
            yield redact.text(normalised(name)), redact.text(version)


def metadata_fields(text: str) -> dict[str, str]:
    """Return name and version from the metadata of a distribution.

    `distribution.metadata` parses all of it, description included: six times as long, a tenth
    of a second where hundreds are installed.
    """
    header = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    rows = re.findall(r"^(name|version):[ \t]*(.*?)[ \t\r]*$", header, re.MULTILINE | re.I)
    return {field.lower(): value for field, value in reversed(rows)}  # of equal ones the first


def _read(path: str | pathlib.Path, limit: int) -> str:
    """Return the first bytes of a regular file, or nothing if there is none to be read."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for its writer
            return ""
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
