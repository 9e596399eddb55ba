"""Record where a checkpoint was made, and compare that with where it is loaded.

The record is plain data. It holds no secrets: environment variables by allow-list only,
everything else that people type goes through `redact`. Whatever cannot be found out is
None; recording never fails a save, imports no framework and starts no process.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from ckptfmt.checks import machine, redact
from ckptfmt.checks.changes import Severity, lookup, normalised, parse_version
from ckptfmt.checks.settings import grade, tells
from ckptfmt.errors import MismatchError, UsageError

_log: Final = logging.getLogger("ckptfmt")

Policy = Literal["off", "warn", "strict"]

CONTAINER: Final = "CKPTFMT_CONTAINER_IMAGE"  # whoever starts the container gives its id

# The allow-list, each with the grade of a difference. "warning": it selects other kernels,
# another precision or another backend. "info": it moves sums or placement about.
VARIABLES: Final[Mapping[str, Severity]] = {
    CONTAINER: "info",
    "CUBLAS_WORKSPACE_CONFIG": "warning",
    "CUDA_LAUNCH_BLOCKING": "info",
    "CUDA_VISIBLE_DEVICES": "info",
    "JAX_DEFAULT_MATMUL_PRECISION": "warning",
    "JAX_ENABLE_X64": "warning",
    "JAX_PLATFORMS": "warning",
    "JAX_THREEFRY_PARTITIONABLE": "warning",
    "KERAS_BACKEND": "warning",
    "MKL_CBWR": "info",
    "MKL_DYNAMIC": "info",
    "MKL_NUM_THREADS": "info",
    "NCCL_ALGO": "info",
    "NCCL_PROTO": "info",
    "NPY_DISABLE_CPU_FEATURES": "info",
    "NUMEXPR_NUM_THREADS": "info",
    "NVIDIA_TF32_OVERRIDE": "warning",
    "OMP_NUM_THREADS": "info",
    "OPENBLAS_CORETYPE": "info",
    "OPENBLAS_NUM_THREADS": "info",
    "PYTHONHASHSEED": "info",
    "TF_CUDNN_DETERMINISTIC": "warning",
    "TF_DETERMINISTIC_OPS": "warning",
    "TF_ENABLE_ONEDNN_OPTS": "warning",
    "TF_NUM_INTEROP_THREADS": "info",
    "TF_NUM_INTRAOP_THREADS": "info",
    "TF_USE_LEGACY_KERAS": "warning",
    "TF_XLA_FLAGS": "warning",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "warning",
    "VECLIB_MAXIMUM_THREADS": "info",
    "XLA_FLAGS": "warning",
}

# Libraries whose version can change a model's output; the others are summed up in one line.
LIBRARIES: Final = frozenset(
    ("accelerate", "diffusers", "flax", "jax", "jaxlib", "keras", "lightning", "ml-dtypes",
     "numpy", "onnxruntime", "opencv-python", "opencv-python-headless", "optax", "pandas",
     "pillow", "pytorch-lightning", "scikit-learn", "scipy", "sentencepiece", "tensorflow",
     "tf-keras", "tokenizers", "torch", "torchaudio", "torchvision", "transformers", "triton")
)  # fmt: skip

# What Keras computes with, and the libraries that are one of them. It imports another one
# where it is installed, only to see that no object is of it.
BACKENDS: Final[Mapping[str, frozenset[str]]] = {
    "jax": frozenset(("jax", "jaxlib")),
    "tensorflow": frozenset(("tensorflow",)),
    "torch": frozenset(("torch",)),
}

# Distributions that bring the library of another name: builds of the same code.
BUILDS: Final[Mapping[str, str]] = {
    "tensorflow-cpu": "tensorflow",
    "tensorflow-gpu": "tensorflow",
    "tensorflow-intel": "tensorflow",
    "tensorflow-macos": "tensorflow",
    "tensorflow-rocm": "tensorflow",
}

MAX_SHOWN: Final = 20  # distributions named in the line that sums up the others
_LONGEST: Final = 60  # characters of a value in a sentence
_GRADES: Final[Mapping[Severity, int]] = {"error": 0, "warning": 1, "info": 2}

# (section, key, grade, reason); versions of libraries are compared on their own.
_RULES: Final[tuple[tuple[str, str, Severity, str], ...]] = (
    ("python", "implementation", "warning", "another implementation of Python"),
    ("system", "os", "warning", "another operating system: other builds of every library"),
    ("system", "machine", "warning", "another architecture: kernels round differently"),
    ("system", "release", "info", "another kernel release"),
    (
        "system",
        "libc",
        "info",
        "another C library: its math functions may differ in the last bit",
    ),
    ("system", "distribution", "info", "another distribution of the operating system"),
    ("cpu", "model", "info", "another processor"),
    ("cpu", "features", "info", "other instruction sets: kernels may differ in the last bit"),
    ("cpu", "usable", "info", "another number of processors: sums may run in another order"),
    ("numpy", "blas", "warning", "NumPy is built on another BLAS: products round differently"),
    ("numpy", "blas_version", "info", "NumPy is built on another version of its BLAS"),
    ("numpy", "simd", "info", "NumPy uses other SIMD kernels: they may differ in the last bit"),
    ("accelerator", "devices", "warning", "other accelerators: kernels round differently"),
    ("accelerator", "driver", "info", "another driver of the accelerators"),
    ("git", "commit", "info", "the code is of another commit"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference between the environment of a checkpoint and this one."""

    severity: Severity  # "error": will differ, "warning": may, "info": at most in rounding
    name: str  # what differs, such as "cpu.features" or "numpy"
    saved: object  # plain value when saved; None if absent
    now: object  # plain value here; None if absent
    reason: str  # why it matters, and what to do about it where that is known

    def change(self) -> str:
        """Return what differs, as a clause."""
        return f"{self.name} was {_said(self.saved)} when saved and is {_said(self.now)} here"


@final
class Recorder:
    """Captures the environment again and again; what cannot change is found out once.

    Owned by a `Store`. The commit is that of the first capture, since this is the code that
    runs, whatever is checked out later. Safe to use from several threads and after a fork.
    """

    __slots__ = ("_fixed",)

    def __init__(self) -> None:
        self._fixed: dict[str, object] | None = None

    def capture(self, *, extra: Mapping[str, object] | None = None) -> dict[str, object]:
        """Return the environment as plain data that shares nothing with this recorder.

        Args:
            extra: Plain data of the caller, kept as it is under "extra". It is the caller's
                to keep secrets out of it.
        """
        if self._fixed is None:
            self._fixed = machine.describe()
        record = copy.deepcopy(self._fixed)
        record["frameworks"] = machine.imported()
        record["variables"] = {
            name: redact.text(os.environ[name]) for name in VARIABLES if name in os.environ
        }
        record["argv"] = redact.argv(getattr(sys, "argv", []))
        record["extra"] = copy.deepcopy(dict(extra or {}))
        return record


def capture(*, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the environment of this process; a `Recorder` does it faster the second time."""
    return Recorder().capture(extra=extra)


def compare(saved: object, now: object) -> list[Finding]:
    """Return what differs between two records, the most serious first.

    Pure, and tolerant: a part that one side did not record, or that has another form, as in
    a record of another release, is not a difference. What to do about a finding (nothing,
    warn, refuse) is the caller's policy.

    Args:
        saved: The record in a checkpoint, or None.
        now: The record of this process.
    """
    if not _section(saved):
        reason = "the checkpoint has no record of the environment it was made in"
        return [
            Finding(severity="info", name="environment", saved=None, now=None, reason=reason)
        ]
    findings = [
        *_rule_findings(saved, now),
        *_library_findings(saved, now),
        *_variable_findings(saved, now),
        *_setting_findings(saved, now),
    ]
    return sorted(findings, key=lambda finding: (_GRADES[finding.severity], finding.name))


def apply(policy: Policy, findings: Iterable[Finding], *, checkpoint: int) -> None:
    """Do what the caller's policy says about findings: nothing, log them, refuse them.

    Those that are mere "info" never count.

    Raises:
        MismatchError: the policy is "strict", and one counts.
        UsageError: no such policy.
    """
    if policy not in ("off", "warn", "strict"):
        expected = "expected the policy 'off', 'warn' or 'strict'"
        raise UsageError(expected, argument="policy", found=policy)
    serious = [finding for finding in findings if finding.severity != "info"]
    if not serious or policy == "off":
        return
    texts = [f"{finding.change()}: {finding.reason}" for finding in serious]
    if policy == "strict":
        raise MismatchError(
            "the environment is not the one the checkpoint was saved in: " + "; ".join(texts),
            checkpoint=checkpoint,
            findings=len(serious),
        )
    for text in texts:
        _log.warning("checkpoint %d: %s", checkpoint, text)


def requirements(record: object) -> str:
    """Return the recorded distributions as a requirements file that pip understands.

    Pinned, sorted, with Python's version and the container's image as comments. What has no
    name or version that pip takes is only counted: the record is foreign data.
    """
    installed = _section(record, "distributions")
    lines = [
        f"{name}=={version}"
        for name, version in sorted(installed.items())
        if isinstance(version, str)
        and re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", name)
        and parse_version(version) is not None
        and re.fullmatch(r"[A-Za-z0-9.!+_-]+", version)
    ]
    notes = [f"# python {_section(record, 'python').get('version')}"]
    image = _section(record, "variables").get(CONTAINER)
    if image is not None:
        notes.append(f"# container image {image}")
    if len(lines) < len(installed):
        notes.append(
            f"# left out, for want of a usable name or version: {len(installed) - len(lines)}"
        )
    safe = ["".join(c if c.isprintable() else "?" for c in note) for note in notes]
    return "\n".join([*safe, *lines]) + "\n"


def _rule_findings(saved: object, now: object) -> Iterator[Finding]:
    for section, key, severity, reason in _RULES:
        old, new = _section(saved, section).get(key), _section(now, section).get(key)
        if old is not None and new is not None and old != new:
            yield Finding(
                severity=severity, name=f"{section}.{key}", saved=old, now=new, reason=reason
            )


def _library_findings(saved: object, now: object) -> Iterator[Finding]:
    used = {normalised(name) for name in _section(saved, "frameworks")}
    loaded = used & {normalised(name) for name in _section(now, "frameworks")}
    old, new = _versions(saved, loaded), _versions(now, loaded)
    idle = _idle(saved)
    listed = bool(_section(now, "distributions"))  # absence can be told only from a list
    others: list[str] = []
    for name in sorted(name for name in old if old[name] != new.get(name)):
        if name not in new and (name == "python" or not listed):
            continue
        if name != "python" and name not in LIBRARIES:
            others.append(name)
        elif name in new:
            found = _version_findings(name, old[name], new[name])
            yield from (
                dataclasses.replace(one, severity="info") if name in idle else one
                for one in found
            )
        else:
            yield Finding(
                severity="warning" if name in used - idle else "info",
                name=name,
                saved=old[name],
                now=None,
                reason="not installed here",
            )
    if others:
        more = f", {MAX_SHOWN} of them shown" if len(others) > MAX_SHOWN else ""
        yield Finding(
            severity="info",
            name="distributions",
            saved={name: old[name] for name in others[:MAX_SHOWN]},
            now={name: new.get(name) for name in others[:MAX_SHOWN]},
            reason=f"{len(others)} other distributions differ{more}"
            if len(others) > 1
            else "another distribution differs",
        )


def _idle(record: object) -> frozenset[str]:
    """Return the libraries that Keras, by its own word, did not compute with."""
    own = BACKENDS.get(str(_section(_section(record, "extra"), "keras").get("backend")))
    return frozenset() if own is None else frozenset().union(*BACKENDS.values()) - own


def _version_findings(name: str, old: str, new: str) -> Iterator[Finding]:
    changes = lookup(name, old, new)
    for change in changes:
        reason = f"{change.what}; {change.action} ({change.source})"
        yield Finding(severity=change.severity, name=name, saved=old, now=new, reason=reason)
    if not changes:
        incompatible = _series(old) != _series(new)
        yield Finding(
            severity="warning" if incompatible else "info",
            name=name,
            saved=old,
            now=new,
            reason="another major version, without a known change on record"
            if incompatible
            else "another version, without a known change on record",
        )


def _variable_findings(saved: object, now: object) -> Iterator[Finding]:
    if not ("variables" in _section(saved) and "variables" in _section(now)):
        return
    old, new = _section(saved, "variables"), _section(now, "variables")
    for name, severity in VARIABLES.items():
        if old.get(name) != new.get(name):
            yield Finding(
                severity=severity,
                name=name,
                saved=old.get(name),
                now=new.get(name),
                reason="this environment variable selects kernels, precision or placement",
            )


def _setting_findings(saved: object, now: object) -> Iterator[Finding]:
    """Compare what callers recorded, such as the settings of a framework, where both did."""
    old, new = _section(saved, "extra"), _section(now, "extra")
    for section in old:
        before, after = _section(old, section), _section(new, section)
        for key in before:
            if not (tells(section, key, before) and tells(section, key, after)):
                continue
            graded = grade(section, key) if before[key] != after[key] else None
            if graded is not None:
                yield Finding(
                    severity=graded[0],
                    name=f"{section}.{key}",
                    saved=before[key],
                    now=after[key],
                    reason=graded[1],
                )


def _series(version: str) -> object:
    """Return the part of a version that changes with incompatible releases: 2.x, or 0.4.x."""
    parsed = parse_version(version)
    if parsed is None:
        return version
    release = parsed.release
    return release[:2] if release[0] == 0 else release[:1]


def _versions(record: object, loaded: Collection[str]) -> dict[str, str]:
    """Return library → version.

    Args:
        loaded: Frameworks that had been imported on both sides: their own word counts. Of
            others it would be compared with what is installed, under another name or spelling.
    """
    found: dict[str, object] = {}
    for name, version in _section(record, "distributions").items():
        found[BUILDS.get(normalised(name), normalised(name))] = version
    for name, version in _section(record, "frameworks").items():
        if normalised(name) in loaded or normalised(name) not in found:
            found[normalised(name)] = version
    for name in ("python", "numpy"):
        found[name] = _section(record, name).get("version") or found.get(name)
    return {name: version for name, version in found.items() if isinstance(version, str)}


def _said(value: object) -> str:
    """Return a value on one line, cut where it is long: the finding has the whole."""
    shown = "absent" if value is None else repr(value)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."


def _section(record: object, name: str | None = None) -> Mapping[str, object]:
    """Return a record, or one section of it, as a dict with str keys, whatever it is."""
    value = record
    if name is not None:
        value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, Mapping):
        return {}
    return {key: item for key, item in value.items() if isinstance(key, str)}
