"""The checkpoints that vectors are made from, valid as they are."""

from __future__ import annotations

import struct
from typing import Any, Final

from ckpt_bytes import NATURAL, Array, Box, Saved, dict_node, save

Pairs = dict[Any, Any]


def floats(*values: float) -> bytes:
    """Return F32 values."""
    return struct.pack(f"<{len(values)}f", *values)


def small() -> Saved:
    """Return the example of spec §6.9: one matrix, one vector, one step count."""
    tree = dict_node(
        {"model": dict_node({"weight": [3, 0], "bias": [3, 1]}), "step": 7},
    )
    arrays = [
        Array("model/weight", "F32", (2, 3), floats(1, 2, 3, 4, 5, 6)),
        Array("model/bias", "F32", (2,), floats(0.5, -0.5)),
    ]
    return save(tree, arrays, metrics={"val_loss": 0.25})


def empty() -> Saved:
    """Return a checkpoint without any array."""
    return save(dict_node({}))


RAMP: Final = bytes(range(96))


def wide() -> Saved:
    """Return a checkpoint with tied, split, encoded, empty and 0-d arrays."""
    tree = dict_node(
        {
            "model": dict_node(
                {"embed": [3, 0], "layers": [1, [[3, 1], [3, 2]]], "head": [3, 0]}
            ),
            "optimizer": dict_node({"m": [3, 3], "v": [3, 4], "none": [3, 5]}),
            "lr": [3, 6],
        }
    )
    quarters = [Box((2 * i, 0), (2, 3)) for i in range(4)]
    mixed = [Box((0, 0), (4, 4)), Box((4, 0), (4, 4), "zstd")]
    arrays = [
        Array("model/embed", "F32", (8, 3), RAMP, aliases=("model/head",)),
        Array("model/layers/0", "BF16", (8, 3), RAMP[:48], boxes=quarters),
        Array("model/layers/1", "I8", (), b"\x80"),
        Array("optimizer/m", "U8", (8, 4), bytes(16) + RAMP[:16], boxes=mixed),
        Array("optimizer/v", "F64", (8,), bytes(64), boxes=[Box((0,), (8,), "zstd")]),
        Array("optimizer/none", "F32", (0, 3), b""),
        Array("lr", "F64", (), struct.pack("<d", 1e-3)),
    ]
    return save(tree, arrays)


def grid() -> Saved:
    """Return a checkpoint whose array is cut into a 2 × 2 grid by two ranks in two files."""
    boxes = [
        Box((0, 0), (2, 3), file=0),
        Box((0, 3), (2, 3), file=1),
        Box((2, 0), (2, 3), file=0),
        Box((2, 3), (2, 3), "zstd", file=1),
    ]
    array = Array("model/w", "F32", (4, 6), RAMP, boxes=boxes)
    return save(dict_node({"model": dict_node({"w": [3, 0]})}), [array])


def every_dtype() -> Saved:
    """Return a checkpoint with one array of each dtype of spec §5.4.2."""
    contents = {
        "BOOL": b"\0\1\1", "U8": b"\0\x7f\xff", "I8": b"\x80\0\x7f",
        "F8_E4M3": b"\x00\x38\x7f", "F8_E5M2": b"\x3c\x7c\xfe",
        "F16": struct.pack("<3e", 1.5, -0.0, 65504.0), "BF16": b"\x80\x3f\x00\x80\xc0\x7f",
        "F32": floats(1.5, -0.0, float("inf")), "F64": struct.pack("<3d", 1e308, -0.0, 5e-324),
        "C64": floats(1, -2, 0.5, 4), "C128": struct.pack("<4d", 1, -2, 0.5, 4),
        "F8_E8M0": b"\x7f\x00\xff", "F8_E4M3FNUZ": b"\x40\x80\x01",
        "F8_E5M2FNUZ": b"\x40\x80\x01", "F8_E4M3B11FNUZ": b"\x40\x80\x01",
        "F8_E3M4": b"\x30\x70\x81", "F8_E4M3IEEE": b"\x38\x78\x81", "F6_E2M3": b"\x08\x1f\x3f",
        "F6_E3M2": b"\x0c\x1f\x3f", "F4": b"\x02\x07\x0f", "I4": b"\x07\x08\x0f",
        "U4": b"\x00\x07\x0f", "I2": b"\x01\x02\x03", "U2": b"\x01\x02\x03",
    }  # fmt: skip
    for bits in (16, 32, 64):
        contents[f"U{bits}"] = b"".join(
            n.to_bytes(bits // 8, "little") for n in (0, 1, 2**bits - 1)
        )
        contents[f"I{bits}"] = b"".join(
            n.to_bytes(bits // 8, "little", signed=True) for n in (-(2 ** (bits - 1)), -1, 1)
        )
    sizes = {**NATURAL, "C64": 8, "C128": 16}
    arrays = [
        Array(f"model/{name}", name, (len(data) // sizes.get(name, 1),), data)
        for name, data in sorted(contents.items())
    ]
    refs = {a.path.split("/")[1]: [3, row] for row, a in enumerate(arrays)}
    return save(dict_node({"model": dict_node(refs)}), arrays)


def sections() -> Saved:
    """Return a checkpoint with standard sections; two ranks have values of their own."""
    ranks = {
        rank: dict_node({"rng": dict_node({"state": [3, 2 + rank]}), "seen": 50 + rank})
        for rank in (0, 1)
    }
    tree = dict_node(
        {
            "model": dict_node({"w": [3, 0]}),
            "optimizer": dict_node(
                {
                    "state": dict_node(
                        {"w": dict_node({"m": [3, 1], "step": [4, "I64", RAMP[:8]]})}
                    ),
                    "groups": [1, [dict_node({"lr": 0.1, "betas": [2, [0.9, 0.999]]})]],
                }
            ),
            "scheduler": dict_node({"last": 3}),
            "data": dict_node({"epoch": 1, "position": 48}),
            "callbacks": dict_node(
                {"best": [6, 0.5, -1.5], "when": [7, "2026-01-02T03:04:05"]}
            ),
            "rank_local": dict_node(ranks),
        }
    )
    arrays = [
        Array("model/w", "F32", (2,), floats(1, 2)),
        Array("optimizer/state/w/m", "F32", (2,), floats(0.25, 0.5)),
        Array("rank_local/0/rng/state", "U32", (2,), RAMP[:8]),
        Array("rank_local/1/rng/state", "U32", (2,), RAMP[8:16]),
    ]
    return save(tree, arrays)


def probe() -> Saved:
    """Return a checkpoint with a probe."""
    tree = dict_node({"model": dict_node({"w": [3, 0]})})
    node = dict_node(
        {
            "inputs": dict_node({"x": [3, 1]}),
            "outputs": [1, [[3, 2]]],
            "dtype": "F32",
            "tolerance": dict_node({"absolute": 0.0, "relative": 1e-6}),
            "deterministic": True,
        }
    )
    arrays = [
        Array("model/w", "F32", (2,), floats(1, 2)),
        Array("~probe/inputs/x", "F32", (2,), floats(3, 4)),
        Array("~probe/outputs/0", "F32", (1,), floats(11)),
    ]
    return save(tree, arrays, probe=node)
