"""The generated parts of the specification: a real tree of names, a complete example."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
from cases_stores import MARKER
from ckpt_bytes import header_nbytes, identity, save_id, tombstone
from samples import small


def parts() -> dict[str, str]:
    """Return the text of each generated part by its name."""
    return {"layout": _layout(), "example": _example()}


def _layout() -> str:
    a, b = save_id(1), save_id(2)
    names = [
        ("ckptfmt.json", MARKER.decode()),
        (f"data/{a}-model-0.safetensors", "weights of checkpoint 1"),
        (f"data/{a}-misc-0.safetensors", "its small sections together"),
        (f"data/{b}-model-0.safetensors", "what changed until checkpoint 2"),
        ("manifests/0000000001-000.ckpt", "checkpoint 1"),
        ("manifests/0000000001-001.ckpt", "its revision 1, without the optimizer"),
        ("manifests/0000000002-000.ckpt", "checkpoint 2: the newest"),
        (f"annotations/0000000002-{b}-000001.msgpack", "a tag, a late metric"),
        (f"intents/{save_id(3)}", "a save in flight"),
        (f"intents/{save_id(3)}.1", "the rows of its rank 1"),
    ]
    width = max(len(name) for name, _ in names) + 2
    return "```\n" + "".join(f"{name:<{width}}{what}\n" for name, what in names) + "```\n"


def _example() -> str:
    s = small()
    data = s.encode()
    (key,) = s.files
    file = s.files[key]
    n = header_nbytes(file)
    first = struct.unpack_from("<Q", data, 16)[0]
    text = [
        "A checkpoint of two arrays, `model/weight` (F32, 2 × 3: 1 … 6) and `model/bias`",
        "(F32, 2: 0.5, −0.5), and the integer `step` = 7.",
        f"Identity: `{identity(data)}`.",
        "",
        f"Data file `{key}`, {len(file)} bytes, N = {n}:",
        "",
        *_dump(file, {0: "length N", 8: "header", 8 + n: "data area"}),
        "",
        f"Manifest `{s.key}`, {len(data)} bytes (also the vector `manifest-small`):",
        "",
        *_dump(
            data,
            {
                0: "magic, version, kind, encoding, reserved",
                16: "summary, body, body raw: nbytes; header check",
                48: "reserved", 64: "SHA-256 of the summary", 96: "SHA-256 of the body",
                128: "summary", 128 + first: "body",
            },
        ),
        "",
        "Its summary and body, with byte strings in hexadecimal:",
        "",
        "```json",
        *_json(msgpack.unpackb(data[128 : 128 + first])),
        *_json(msgpack.unpackb(data[128 + first :])),
        "```",
        "",
        f"The tombstone that replaces it, {len(tombstone(1, id_=save_id(1)))} bytes:",
        "",
        *_dump(tombstone(1, id_=save_id(1)), {0: "header", 128: "summary"}),
    ]  # fmt: skip
    return "\n".join(text) + "\n"


def _dump(data: bytes, marks: Mapping[int, str]) -> Iterator[str]:
    yield "```"
    borders = [*marks, len(data)]
    for begin, end in itertools.pairwise(borders):
        yield f"{begin:08x}  -- {marks[begin]}"
        for at in range(begin, end, 16):
            line = data[at : min(at + 16, end)]
            shown = "".join(chr(b) if 32 <= b < 127 else "." for b in line)
            yield f"{at:08x}  {line.hex(' '):<47}  |{shown}|"
    yield "```"


def _json(fields: dict[str, Any]) -> Iterator[str]:
    yield "{"
    rows = [f"  {json.dumps(k)}: {json.dumps(v, default=bytes.hex)}" for k, v in fields.items()]
    yield from (row + "," for row in rows[:-1])
    yield rows[-1]
    yield "}"
