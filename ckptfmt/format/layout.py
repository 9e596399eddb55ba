"""Key names inside a store (spec §4)."""

from __future__ import annotations

import re
from typing import Final

from ckptfmt.errors import FormatError

MARKER: Final = "ckptfmt.json"
DATA: Final = "data"
MANIFESTS: Final = "manifests"
ANNOTATIONS: Final = "annotations"
INTENTS: Final = "intents"

MAX_NUMBER: Final = 10**10 - 1
MAX_REVISION: Final = 999

_SAVE_ID: Final = re.compile(r"[0-9a-f]{24}\Z")
_DATA_KEY: Final = re.compile(r"data/(?!\.)[A-Za-z0-9._-]{1,200}\Z")
_MANIFEST: Final = re.compile(r"manifests/([0-9]{10})-([0-9]{3})\.ckpt\Z")
_ANNOTATION: Final = re.compile(r"annotations/([0-9]{10})-([0-9a-f]{24})-([0-9]{6})\.msgpack\Z")
_INTENT: Final = re.compile(r"intents/([0-9a-f]{24})(?:\.([0-9]{1,6}))?\Z")


def manifest_key(number: int, revision: int = 0) -> str:
    """Return the name of revision `revision` of checkpoint `number`."""
    return f"{MANIFESTS}/{number:010d}-{revision:03d}.ckpt"


def parse_manifest_key(key: str) -> tuple[int, int] | None:
    """Return (number, revision), or None for a name that is not a manifest's."""
    found = _MANIFEST.match(key)
    return (int(found[1]), int(found[2])) if found else None


def data_key(save_id: str, section: str, n: int) -> str:
    """Return the name of the n-th data file of a save; the section is only for humans."""
    text = re.sub(r"[^A-Za-z0-9_-]", "_", section)[:64] or "root"
    return f"{DATA}/{save_id}-{text}-{n}.safetensors"


def data_save_id(key: str) -> str | None:
    """Return the save id a data file's name starts with, or None when it is not ours."""
    name = key.removeprefix(DATA + "/")
    return name[:24] if _SAVE_ID.match(name[:24]) and name[24:25] == "-" else None


def check_data_key(key: object, at: str) -> str:
    """Return `key` when it follows the grammar of spec §4.3; it can then not leave the store.

    Raises:
        FormatError: it does not.
    """
    if not isinstance(key, str) or not _DATA_KEY.match(key):
        raise FormatError("expected a data key matching data/[A-Za-z0-9._-]+", at=at, found=key)
    return key


def intent_key(save_id: str, rank: int | None = None) -> str:
    """Return the name of a save's lease, or of one rank's rows."""
    return f"{INTENTS}/{save_id}" + ("" if rank is None else f".{rank}")


def parse_intent_key(key: str) -> tuple[str, int | None] | None:
    """Return (save id, rank or None), or None for a foreign name."""
    found = _INTENT.match(key)
    return (found[1], None if found[2] is None else int(found[2])) if found else None


def annotation_key(number: int, checkpoint_id: str, n: int) -> str:
    """Return the name of the n-th annotation of a checkpoint."""
    return f"{ANNOTATIONS}/{number:010d}-{checkpoint_id}-{n:06d}.msgpack"


def parse_annotation_key(key: str) -> tuple[int, str, int] | None:
    """Return (number, checkpoint id, n), or None for a foreign name."""
    found = _ANNOTATION.match(key)
    return (int(found[1]), found[2], int(found[3])) if found else None


def is_save_id(text: object) -> bool:
    """Tell whether `text` is 24 lower-case hexadecimal digits (96 bits)."""
    return isinstance(text, str) and _SAVE_ID.match(text) is not None
