"""A folder with several files that belong together, such as one that a Trainer writes.

Each file is read by whichever reader knows its bytes; what none knows is left out and listed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from ckptfmt.errors import FormatError, IntegrityError
from ckptfmt.migrate import registry, texts
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.members import Members
from ckptfmt.migrate.readers import pickled, shards, torch_stream
from ckptfmt.migrate.source import Contents, Note

MAX_JSON_NBYTES: Final = 16 * 2**20
MAX_TEXT: Final = 300
_WEAK: Final = (
    b"\x1f\x8b\x08", b"{", b"[", b"BZh", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda",
    *(bytes([code]) for code in (*range(0x81, 0x90), 0xDE, 0xDF)),  # maps of MessagePack
    *pickled.BEGINS, *pickled.OLD,
)  # fmt: skip
_WITHOUT = frozenset({"shards", "folder", "deepspeed"})  # sets are found before

# What a file is for, by the names that trainers give: (beginning, section).
_ROLES: Final = (
    ("model", "model"), ("pytorch_model", "model"), ("adapter_model", "model"),
    ("policy.optimizer", "optimizer"), ("policy", "model"), ("data", "hyperparameters"),
    ("optimizer", "optimizer"), ("scheduler", "scheduler"), ("scaler", "scaler"),
    ("rng_state", "rng"), ("random_states", "rng"), ("training_args", "hyperparameters"),
    ("adapter_config", "architecture"), ("config.json", "architecture"),
)  # fmt: skip


def read(place: Place) -> Contents | None:
    """Return what the files of a folder hold, or None when a file was named."""
    if place.name is not None:
        return None
    found: dict[str, Contents] = {}
    values: dict[str, Any] = {}
    names = place.folder.names()
    notes = [
        Note(path=name, text="left out: no file of this folder, migrate it by itself")
        for name in place.folder.others()
    ]
    nested = isinstance(place.folder, Members)  # no archive inside an archive is opened
    without = _WITHOUT | {"archive"} if nested else _WITHOUT
    for name in names:
        if name.endswith(shards.SUFFIX):
            whole = shards.of_index(place.folder, name)
            if whole is not None:
                short = name.removesuffix(shards.SUFFIX)
                found[name if short in names else short] = (
                    whole  # a whole file beside its parts
                )
    taken = {file for contents in found.values() for file in contents.files}
    for name in names:
        if name in taken:
            continue
        try:
            contents = registry.find(Place(place.folder, name), without=without)
            if contents is not None:
                found[name] = contents
            elif not _json(place.folder, name, values):
                notes.append(Note(path=name, text="left out: no reader knows this file"))
        except IntegrityError:
            raise
        except FormatError as error:
            if not _is_doubtful(place.folder, name):
                raise
            text = str(error)[:MAX_TEXT]
            notes.append(Note(path=name, text=f"left out: perhaps no checkpoint: {text}"))
    if not found:
        return None
    taken = {file for contents in found.values() for file in contents.files}
    notes = [note for note in notes if note.path not in taken]  # a part of another one
    return _together(found, values, notes)


def _is_doubtful(folder: Names, name: str) -> bool:
    """Tell whether a file that cannot be read may be something else, by name and first bytes.

    A log that is compressed, a text that begins like a pickle, JSON line by line: none of them
    may keep the rest from being read. What is called like a part of a checkpoint is one.
    """
    if _role(name) is not None and not name.startswith("data."):
        return False
    head = folder.span(name).head(16)
    is_stream = any(head == magic[:16] for magic in torch_stream.MAGICS)
    return head.startswith(_WEAK) and not is_stream


def _json(folder: Names, name: str, values: dict[str, Any]) -> bool:
    """Take a file of settings as plain values."""
    span = folder.span(name)
    if span.head(1) not in (b"{", b"[") or span.nbytes > MAX_JSON_NBYTES:
        return False
    try:
        values[name] = texts.parse(span)
    except FormatError:
        if name.endswith(".json"):
            raise
        return False
    return True


def _together(
    found: dict[str, Contents], values: dict[str, Any], notes: list[Note]
) -> Contents:
    if len(found) == 1 and not values:
        (only,) = found.values()
        return replace(only, notes=(*only.notes, *notes))
    for name, contents in found.items():
        notes += [Note(path=f"{name}/{n.path}", text=n.text) for n in contents.notes]
    producers = dict.fromkeys(c.producer for c in found.values() if c.producer)
    return Contents(
        format="folder",
        root={**{name: contents.root for name, contents in found.items()}, **values},
        files=(*(file for contents in found.values() for file in contents.files), *values),
        producer=", ".join(producers) or None,
        notes=tuple(notes),
        roles={name: role for name in (*found, *values) if (role := _role(name))},
    )


def _role(name: str) -> str | None:
    return next((role for begin, role in _ROLES if name.startswith(begin)), None)
