"""What several commands show or put into their JSON, in the same form everywhere."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TypeAlias

from ckptfmt import Checkpoint
from ckptfmt.cli import text

Document: TypeAlias = dict[str, object]


def head(checkpoint: Checkpoint) -> Document:
    """Return what is known of a checkpoint without its manifest's body."""
    parent = checkpoint.parent
    return {
        "revision": checkpoint.revision,
        "id": checkpoint.id,
        "identity": checkpoint.identity,
        "parent": None if parent is None else {"number": parent[0], "id": parent[1]},
        "time": time(checkpoint.time),
        "writer": checkpoint.writer,
        "counters": checkpoint.counters,
        "metrics": checkpoint.metrics,
        "tags": checkpoint.tags,
        "sections": [
            {"name": s.name, "nbytes": s.nbytes, "arrays": s.arrays}
            for s in checkpoint.sections
        ],
        "dropped": checkpoint.dropped,
        "dropped_at": {name: time(at) for name, at in checkpoint.dropped_at.items()},
        "nbytes": checkpoint.nbytes,
    }


def time(when: datetime.datetime | int) -> str:
    """Return a time, or microseconds since the Unix epoch, in ISO 8601 and UTC.

    Times beyond the calendar, which only a forged checkpoint has, are shown as its end.
    """
    if isinstance(when, int):
        epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)
        last = datetime.datetime.max.replace(tzinfo=datetime.UTC)
        when = epoch + min(datetime.timedelta(microseconds=when), last - epoch)
    return when.isoformat(timespec="microseconds")


def environment(record: object) -> list[tuple[str, str]]:
    """Return the parts of an environment record that fit on a screen: (name, text).

    Tolerant: a part that is absent, or of another release's form, is not shown.
    """
    python, system = _part(record, "python"), _part(record, "system")
    cpu, numpy, git = _part(record, "cpu"), _part(record, "numpy"), _part(record, "git")
    frameworks = [f"{name} {version}" for name, version in _part(record, "frameworks").items()]
    changed = "with changes" if git.get("dirty") is True else None
    usable = f"{cpu['usable']} usable" if cpu.get("usable") is not None else None
    rows = [
        ("python", _words(python.get("implementation"), python.get("version"))),
        (
            "system",
            _words(system.get("distribution"), system.get("release"), system.get("machine")),
        ),
        ("processor", ", ".join(filter(None, [_words(cpu.get("model")), usable]))),
        ("accelerator", _accelerator(record)),
        ("numpy", _words(numpy.get("version"), numpy.get("blas"), numpy.get("blas_version"))),
        ("frameworks", ", ".join(frameworks)),
        *(
            (
                section,
                _words(*(f"{k}={_setting(v)}" for k, v in values.items() if v is not None)),
            )
            for section, values in _part(record, "extra").items()
            if isinstance(values, Mapping)
        ),
        ("variables", _words(*(f"{k}={v}" for k, v in _part(record, "variables").items()))),
        ("git", _words(git.get("commit"), git.get("branch"), changed)),
        ("command", _words(*_list(record, "argv"))),
    ]
    return [(name, shown) for name, shown in rows if shown]


def _accelerator(record: object) -> str:
    part = _part(record, "accelerator")
    driver = f"driver {part['driver']}" if part.get("driver") is not None else None
    return ", ".join(filter(None, [text.several(_list(part, "devices")), driver]))


def _setting(value: object) -> str:
    return f"[{text.several(value)}]" if isinstance(value, list) else str(value)


def _part(record: object, name: str) -> Mapping[str, object]:
    part = record.get(name) if isinstance(record, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _list(record: object, name: str) -> list[object]:
    part = record.get(name) if isinstance(record, Mapping) else None
    return part if isinstance(part, list) else []


def _words(*parts: object) -> str:
    return " ".join(str(part) for part in parts if part not in (None, ""))
