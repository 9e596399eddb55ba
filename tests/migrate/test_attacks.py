"""Every reader against damage, lengths that lie, and pickles that would run code.

What a reader begins with are the seeds of the fuzzer, which cover all that
`ckptfmt migrate --formats` lists (`test_fuzzing.py` sees to it).
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import io
import itertools
import json
import lzma
import pathlib
import pickle
import random
import resource
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate import pickles, scratch
from tests.fuzz import targets
from tests.migrate import corpus

SEEDS: Final = 3  # the smallest of each
LIES: Final = b"\xff" * 8, b"\xff\xff\xff\x7f" + bytes(4), bytes(7) + b"\x40", bytes(8)
HEADER: Final = 160  # bytes in which lengths stand
MEMORY_NBYTES: Final = 2**30
SECONDS: Final = 20.0  # for one input, on a busy machine; HDF5 has as many


def _damaged(data: bytes) -> list[bytes]:
    """Return copies: cut short, with bits flipped, with every length another one."""
    rng = random.Random(len(data))
    found = [data[: len(data) * part // 9] for part in range(9)] + [data[:-1], data + b"\0"]
    for reach in (32, 256, len(data)) * 8:
        copy = bytearray(data)
        copy[rng.randrange(min(reach, len(copy)))] ^= 1 << rng.randrange(8)
        found.append(bytes(copy))
    for at, lie in itertools.product(range(0, min(HEADER, len(data)), 4), LIES):
        found.append(data[:at] + lie[: len(data) - at] + data[at + 8 :])
    return found


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_no_reader_trusts_what_it_reads(name: str) -> None:
    target = targets.TARGETS[name]
    if target.reader == "hdf5" and not corpus.HAS_H5PY:
        pytest.skip("h5py is not installed: no HDF5 was read")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    for seed in target.seeds()[:SEEDS]:
        for data in _damaged(seed):
            began = time.monotonic()
            refused += not target.run(data)  # raises what is no error of ours
            assert time.monotonic() - began < SECONDS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert refused
    assert peak - before < MEMORY_NBYTES


def _calls(marker: pathlib.Path) -> list[bytes]:
    """Return pickles that import a module, and call a function of it in several ways."""
    text = pickle.dumps(str(marker), 2)[2:-1].replace(b"q\x00", b"")
    named = b"cevil\nrun\n"
    short = b"\x8c\x04evil\x8c\x03run\x93"
    return [
        b"\x80\x04" + call + b"."
        for call in (
            named + text + b"\x85R",
            short + text + b"\x85R",
            b"(" + text + b"ievil\nrun\n",
            b"(" + named + text + b"o",
            named + text + b"\x85\x81",
            named + text + b"\x85}\x92",
            named + b")\x81" + text + b"b",
            b"}" + pickle.dumps("w")[11:-2] + named + text + b"\x85Rs",
        )
    ]


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _npy(call: bytes) -> bytes:
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + call


def _stream(call: bytes) -> bytes:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    system = pickle.dumps({"little_endian": True, "protocol_version": 1001}, 2)
    return magic + pickle.dumps(1001, 2) + system + call + pickle.dumps([], 2)


# What holds a pickle → its files.
HOLDERS: Final[dict[str, Callable[[bytes], dict[str, bytes]]]] = {
    "pickle": lambda call: {"x": call},
    "torch zip": lambda call: {"x": _zip({"a/data.pkl": call, "a/version": b"3\n"})},
    "torch zip, constants": lambda call: {
        "x": _zip({"a/data.pkl": pickle.dumps({}, 2), "a/constants.pkl": call,
                   "a/version": b"3\n", "a/code/__torch__.py": b"class A: pass"})},
    "torch stream": lambda call: {"x": _stream(call)},
    "torch tar": lambda call: {
        "x": _tar({"sys_info": call, "pickle": call, "tensors": call, "storages": call})},
    "npy": lambda call: {"x": _npy(call)},
    "npz": lambda call: {"x": _zip({"a.npy": _npy(call)})},
    "dcp": lambda call: {".metadata": call, "__0_0.distcp": call},
    "deepspeed": lambda call: {
        "mp_rank_00_model_states.pt": _zip({"a/data.pkl": call, "a/version": b"3\n"})},
    "sb3": lambda call: {"x": _zip({
        "data": json.dumps({"a": {":type:": "x", ":serialized:":
                                  base64.b64encode(call).decode()}}).encode(),
        "policy.pth": _zip({"a/data.pkl": call, "a/version": b"3\n"}),
        "_stable_baselines3_version": b"2.0.0"})},
    "zip": lambda call: {"x": _zip({"a.pkl": call})},
    "packed": lambda call: {"x": zlib.compress(call)},
    "folder": lambda call: {"optimizer.pt": call, "model.safetensors": targets.ONE},
}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_nothing_is_called_whatever_holds_the_pickle(
    holder: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\ndef run(*_): open({str(marker)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mentioned: list[str] = []
    name = pickles.Machine.name

    def recorded(machine: pickles.Machine, module: Any, what: Any) -> Any:
        mentioned.append(module)
        return name(machine, module, what)

    monkeypatch.setattr(pickles.Machine, "name", recorded)
    for number, call in enumerate(_calls(marker)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for file, data in HOLDERS[holder](call).items():
            (folder / file).write_bytes(data)
        for source in (folder, *folder.iterdir()):
            with contextlib.suppress(errors.CheckpointError):
                for _, array in migrate.open(source).arrays():
                    np.asarray(array)
        assert "evil" in mentioned, number  # the pickle was read
        assert not marker.exists(), number
        mentioned.clear()


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, zlib.compress])
def test_a_packed_bomb_is_not_unpacked(
    pack: Callable[[bytes], bytes], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "FREE_NBYTES", 2**20)
    monkeypatch.setattr(scratch, "MAX_RATIO", 100)
    (tmp_path / "x").write_bytes(pack(pickle.dumps({"w": np.zeros(2**20)})))

    with pytest.raises(errors.FormatError, match="unpacks to too much"):
        migrate.open(tmp_path / "x")


@pytest.mark.parametrize("make", [_zip, _tar])
@pytest.mark.parametrize(
    "name", ["../x.npy", "/x.npy", "a/../../x.npy", "..\\x.npy", "c:/x.npy"]
)
def test_a_member_cannot_leave_its_archive(
    name: str, make: Callable[[dict[str, bytes]], bytes], tmp_path: pathlib.Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    (inner / "a").write_bytes(make({name: array.getvalue(), "notes.bin": b"beside"}))

    with pytest.raises(errors.FormatError, match="leads out"):
        migrate.open(inner / "a")

    assert [file.name for file in tmp_path.rglob("*")] == ["inner", "a"]
