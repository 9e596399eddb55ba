"""Are inputs made as they were when the checkpoint was saved? Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from ckptfmt.checks.environment import Finding

MAX_SHOWN = 12  # values that differ, one finding each; the others are counted


def compare(
    preprocessing: object,
    artifacts: Mapping[str, bytes],
    preprocessing_here: object,
    artifacts_here: Mapping[str, bytes],
) -> list[Finding]:
    """Return what differs between the stored preprocessing and the one in use.

    Every difference is an error: a model that gets other inputs gives other outputs.

    Args:
        preprocessing_here: None does not compare it.
        artifacts_here: Only these are compared.
    """
    findings = []
    if preprocessing_here is not None:
        rows = list(_different(preprocessing, preprocessing_here, "preprocessing"))
        findings += [_changed(*row) for row in rows[:MAX_SHOWN]]
        if len(rows) > MAX_SHOWN:
            findings.append(_changed("preprocessing", len(rows), len(rows)))
    for name, data in artifacts_here.items():
        if name not in artifacts:
            findings.append(_changed(f"artifacts/{name}", None, _digest(data)))
        elif artifacts[name] != data:
            findings.append(
                _changed(f"artifacts/{name}", _digest(artifacts[name]), _digest(data))
            )
    return findings


def _changed(name: str, saved: object, now: object) -> Finding:
    return Finding(
        severity="error",
        name=name,
        saved=saved,
        now=now,
        reason="the model's inputs are not made as they were when it was saved",
    )


def _different(saved: object, now: object, path: str) -> Iterator[tuple[str, object, object]]:
    """Yield (path, saved, now) of each value that differs; NaN equals itself."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*saved, *(key for key in now if key not in saved)]:
            yield from _different(saved.get(key), now.get(key), f"{path}/{key}")
        return
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        if len(saved) == len(now):
            for n, (a, b) in enumerate(zip(saved, now, strict=True)):
                yield from _different(a, b, f"{path}/{n}")
            return
        saved, now = f"{len(saved)} values", f"{len(now)} values"
    saved, now = _number(saved), _number(now)
    both_nan = saved != saved and now != now
    if not both_nan and (saved != now or type(saved) is not type(now)):
        yield path, saved, now


def _number(value: object) -> object:
    """Return scalars of NumPy that are what Python's own are as these: 0.5 is 0.5."""
    return value.item() if isinstance(value, np.float64 | np.int64 | np.bool_) else value


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
