"""Hostile and damaged sources: one error of ours, no code run, bounded time and memory."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import pathlib
import pickle
import random
import resource
import struct
import tarfile
import time
import zipfile
from typing import Any, Final

import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate.source import MAX_NODES
from ckptfmt.migrate.storing import Storing
from tests.migrate import corpus

SOAK: Final = bool(os.environ.get("CKPTFMT_SOAK"))
SEED: Final = int(os.environ.get("CKPTFMT_SEED", "8"))
MUTATIONS: Final = 150 if SOAK else 24  # a file; `make fuzz` does 10,000 a parser
OTHERS: Final = 24 if SOAK else 6  # a file of the larger corpus
BAD: Final = sorted(
    file for file in (corpus.OWN / "bad").iterdir() if file.suffix not in (".json", ".h5")
)
FILES: Final = [
    (entry, file)
    for entry in {
        one.id: one for one in (*corpus.chosen(), *corpus.entries(corpus.OWN))
    }.values()
    if corpus.is_read(entry)
    for file in sorted(entry.source().iterdir())
    if file.is_file() and file.stat().st_size
]


def everything(path: pathlib.Path) -> None:
    """Open a source and read all of it."""
    source = migrate.open(path)
    for _, array in source.arrays():
        np.asarray(array)
    assert source.report.items is not None
    Storing(lambda array: array.load()).value(source.layout.state)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.name)
def test_known_attacks_are_refused(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = set(os.listdir(file.parent.parent)), set(os.listdir(tmp_path))

    with pytest.raises(errors.CheckpointError):
        everything(file)

    assert (set(os.listdir(file.parent.parent)), set(os.listdir(tmp_path))) == before


def test_the_code_of_a_lambda_layer_stays_text() -> None:
    pytest.importorskip("h5py", reason="h5py is not installed: no HDF5 was read")
    source = migrate.open(corpus.OWN / "bad" / "modelaudit-lambda.h5")

    assert isinstance(source.tree()["@model_config"], str)


# Calls that run code when Python unpickles them. Each would create the file `{marker}`.
GADGETS: Final = [
    "os.system", "posix.system", "nt.system", "subprocess.call", "subprocess.Popen",
    "subprocess.check_output", "builtins.eval", "builtins.exec", "__builtin__.eval",
    "builtins.compile", "builtins.__import__", "builtins.getattr", "operator.attrgetter",
    "operator.methodcaller", "functools.partial", "runpy._run_code", "importlib.import_module",
    "pty.spawn", "webbrowser.open", "code.interact", "torch.serialization.load",
    "torch.hub.load", "numpy.testing._private.utils.runstring", "pip._internal.main",
    "timeit.timeit", "cProfile.run", "bdb.Bdb.run", "asyncio.create_subprocess_shell",
    "shutil.rmtree", "pickle.loads", "marshal.loads", "types.FunctionType",
]  # fmt: skip


def _forms(module: str, name: str, argument: bytes) -> list[bytes]:
    """Return pickles that call one function in every way that there is, beside an array."""
    array = pickle.dumps(np.arange(3.0), 2)[2:-1]  # so that it passes for a checkpoint
    text = b"X" + struct.pack("<I", len(argument)) + argument
    found = f"c{module}\n{name}\n".encode()
    short = b"".join(b"\x8c" + bytes([len(p)]) + p for p in (module.encode(), name.encode()))
    calls = [
        found + b"(" + text + b"tR",
        short + b"\x93" + b"(" + text + b"tR",
        b"(" + text + f"i{module}\n{name}\n".encode(),
        b"(" + found + text + b"o",
        found + text + b"\x85\x81",
        found + text + b"\x85}\x92",
        found + b")\x81" + text + b"b",
        found + b"q\xfe0h\xfe" + text + b"\x85R",
    ]
    return [b"\x80\x04]" + array + b"a" + call + b"a." for call in calls]


@pytest.mark.parametrize("gadget", GADGETS)
def test_nothing_a_pickle_calls_is_called(
    gadget: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = gadget.rpartition(".")
    marker = tmp_path / "marker"

    def imported(*_: object, **__: object) -> Any:
        raise AssertionError("a source made us import something")

    for number, data in enumerate(_forms(module, name, f"touch {marker}".encode())):
        file = tmp_path / f"{number}.pkl"
        file.write_bytes(data)
        migrate.open(tmp_path / "0.pkl")  # all readers are imported by now
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", imported)
            source = migrate.open(file)
        mentioned = [str(leaf) for leaf in _leaves(source.tree()) if gadget in str(leaf)]

        assert mentioned, number  # kept as text
        assert not marker.exists()


def _leaves(node: Any) -> list[Any]:
    found = []
    for item in node:
        found += [item, getattr(item, "cls", None)]
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("string longer than the file", b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00" + b"x."),
        ("frame longer than the file", b"\x80\x04\x95" + b"\xff" * 8 + b"]."),
        ("tuples as a key", b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."),
        ("deep lists", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
        ("deep records", b"\x80\x02ca\nb\n" + b"\x85ca\nb\n\x8d"[:1] * 100_000 + b"."),
        ("a billion laughs", b"\x80\x02]q\x00K\x01a" + b"".join(
            b"]q" + bytes([n]) + b"h" + bytes([n - 1]) + b"ah" + bytes([n - 1]) + b"a"
            for n in range(1, 41)) + b"."),
        ("no end", b"\x80\x02](((((("),
        ("stack underflow", b"\x80\x02aaaa."),
        ("mark as value", b"\x80\x02]((a."),
        ("extension", b"\x80\x02\x82\x01."),
        ("huge integer in text", b"\x80\x02I" + b"9" * 100_000 + b"\n."),
        ("array with a wrong length", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
         b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01\x8a\x06\xff\xff\xff\xff\xff\x00\x85cnumpy\n"
         b"dtype\nX\x02\x00\x00\x00f8\x85R\x89C\x00tb."),
    ],
)  # fmt: skip
def test_pickle_bombs_are_refused_at_once(
    name: str, data: bytes, tmp_path: pathlib.Path
) -> None:
    array = pickle.dumps(np.arange(3.0), 2)[2:-1]
    (tmp_path / "x").write_bytes(data[:2] + b"(" + array + data[2:-1] + b"t.")
    began, peak = time.monotonic(), _peak()

    with pytest.raises(errors.CheckpointError):
        everything(tmp_path / "x")

    assert time.monotonic() - began < 60
    assert _peak() - peak < 2**30


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02]r\xff\xff\xff\x0f.", b"\x80\x02]q\x00h\x00a."],
    ids=["memo far out", "a list in itself"],
)
def test_what_is_odd_but_harmless_costs_nothing(data: bytes, tmp_path: pathlib.Path) -> None:
    array = pickle.dumps(np.arange(3.0), 2)[2:-1]
    (tmp_path / "x").write_bytes(data[:2] + b"(" + array + data[2:-1] + b"t.")
    peak = _peak()

    everything(tmp_path / "x")

    assert _peak() - peak < 2**26


def _zip(path: pathlib.Path, members: dict[str, bytes], **options: Any) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path: pathlib.Path) -> None:
    header = _npy(np.zeros(4))[:128]
    data = header + bytes(2**28)
    path = _zip(tmp_path / "x.npz", {"a.npy": data}, compression=zipfile.ZIP_DEFLATED)
    peak = _peak()

    with pytest.raises(errors.FormatError, match="disagree"):
        everything(path)

    assert _peak() - peak < 2**26


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: pathlib.Path) -> None:
    path = _zip(
        tmp_path / "x.npz", {"a.npy": _npy(np.zeros(999))}, compression=zipfile.ZIP_DEFLATED
    )
    whole = path.read_bytes()
    size = struct.pack("<I", len(_npy(np.zeros(999))))
    path.write_bytes(whole.replace(size, struct.pack("<I", len(_npy(np.zeros(999))) - 8)))

    with pytest.raises(errors.FormatError):
        everything(path)


def test_two_members_of_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", _npy(np.zeros(3)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", _npy(np.ones(3)))

    with pytest.raises(errors.FormatError, match="same name"):
        everything(path)


def test_overlapping_members_are_refused(tmp_path: pathlib.Path) -> None:
    """The second member lies, header and all, inside the data of the first."""
    inner = _zip(tmp_path / "inner", {"b.npy": _npy(np.zeros(3))})
    with zipfile.ZipFile(inner) as archive:
        info, end = archive.getinfo("b.npy"), archive.start_dir
    outer = _npy(np.frombuffer(inner.read_bytes()[:end], np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", outer)
        info.header_offset = archive.start_dir - end
        archive.filelist.append(info)

    with pytest.raises(errors.FormatError, match="overlap"):
        everything(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: pathlib.Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.npy")
        info.type, info.linkname = kind, "/etc/hostname"
        archive.addfile(info)

    with pytest.raises(errors.FormatError, match="link or device"):
        everything(tmp_path / "x.tar")


def _safetensors(path: pathlib.Path, header: Any, data: bytes = b"") -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _row(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": _row([2], 0, 8), "b": _row([2], 4, 12)}, bytes(12)),
        ({"a": _row([1], 0, 4), "b": _row([1], 8, 12)}, bytes(12)),
        ({"a": _row([1], 0, 4)}, bytes(8)),
        ({"a": _row([2], 0, 8)}, bytes(4)),
        ({"a": _row([4194305, 4194305, 211106198978564], 0, 4)}, bytes(4)),
        ({"a": _row([-1], 0, 4)}, bytes(4)),
        ({"a": _row([1], 4, 0)}, bytes(4)),
        ({"a": _row([1], 0, 4, "F99")}, bytes(4)),
        ({"a": [1, 2]}, b""),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
         b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        (b"{\xff\xfe}", b""),
        (b"{} x", b""),
    ],
)  # fmt: skip
def test_safetensors_headers_are_not_trusted(
    header: Any, data: bytes, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.FormatError):
        everything(_safetensors(tmp_path / "x", header, data))


def test_a_header_longer_than_the_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**39) + b"{}")

    with pytest.raises(errors.FormatError, match="ends inside the header"):
        everything(tmp_path / "x")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a\\b", "c:x", "link", "hard"])
def test_a_name_in_an_index_cannot_leave_the_folder(name: str, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = _safetensors(tmp_path / "secret", {"a": _row([1], 0, 4)}, bytes(4))
    (folder / "link").symlink_to(secret)
    (folder / "hard").hardlink_to(secret)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(errors.FormatError, match=r"plain relative|link"):
        everything(folder / "m.safetensors.index.json")


def _mutants(data: bytes, rng: random.Random, count: int) -> list[bytes]:
    """Return damaged copies: cut, flipped, with bytes swapped in, dropped or repeated."""
    found = [data[: len(data) * part // 7] for part in range(1, 7)] + [data[:-1], data + b"\0"]
    for _ in range(count):
        copy = bytearray(data)
        # Headers are where readers make decisions: half of the damage goes there.
        reach = rng.choice([64, 512, 4096, len(copy)])
        at = rng.randrange(min(reach, len(copy)))
        match rng.randrange(5):
            case 0:
                copy[at] ^= 1 << rng.randrange(8)
            case 1:
                copy[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x2E])
            case 2:
                copy[at : at + 8] = b"\xff" * len(copy[at : at + 8])
            case 3:
                del copy[at : at + rng.randrange(1, 16)]
            case _:
                copy[at:at] = copy[at : at + rng.randrange(1, 64)]
        found.append(bytes(copy))
    return found


@pytest.mark.parametrize(("entry", "file"), FILES, ids=[f"{e.id}-{f.name}" for e, f in FILES])
def test_damage_is_an_error_of_ours_or_no_damage(
    entry: corpus.Entry, file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rng = random.Random(f"{SEED} {entry.id} {file.name}")
    count = MUTATIONS if entry.folder.is_relative_to(corpus.OWN) else OTHERS
    for number, data in enumerate(_mutants(file.read_bytes(), rng, count)):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        began = time.monotonic()
        with contextlib.suppress(errors.CheckpointError):
            everything(path)
        assert time.monotonic() - began < 60, number
        path.unlink()
    assert _peak() < 2**32


@pytest.mark.parametrize(
    "entry", ["pl-tabular-save", "sb3-ars-cartpole", "torch-zip-candle-fortran"]
)
def test_every_flipped_bit_of_an_archive_is_found(entry: str, tmp_path: pathlib.Path) -> None:
    """Archives carry a CRC for each member: what passes must be what was stored."""
    (chosen,) = [one for one in corpus.entries(corpus.OWN) if one.id == entry]
    (file,) = chosen.folder.iterdir()
    good = corpus.read(str(file))
    whole = file.read_bytes()
    rng = random.Random(f"{SEED} {entry}")
    for number in range(MUTATIONS * 4):
        copy = bytearray(whole)
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}"
        path.write_bytes(copy)
        try:
            found = corpus.read(str(path))
        except errors.CheckpointError:
            continue
        assert found == good


def test_too_many_values_are_refused() -> None:
    shared: list[Any] = [0] * 2000
    laughs = [shared] * (MAX_NODES // 2000 + 1)

    with pytest.raises(errors.FormatError, match="unfolds"):
        list(migrate.source.walk(laughs))
