"""Sources that make no sense: whatever Python or NumPy say to them, the error is ours."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import signal
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate import archives, registry, wire
from ckptfmt.migrate.boxes import Slice, joined
from ckptfmt.migrate.files import Folder, Place
from ckptfmt.migrate.source import Key, Lazy, check_shape, key_of
from tests.migrate.test_hostile import everything

PICKLE: Final = b"\x80\x02"
ARRAY: Final = pickle.dumps(np.arange(3.0), 2)[2:-1]  # so that it passes for a checkpoint


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def safetensors(shape: list[int], nbytes: int = 0) -> bytes:
    row = {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}
    header = json.dumps({"a": row}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(nbytes)


def npy(descr: str, shape: str, nbytes: int = 0) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(nbytes)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def pt(call: bytes, storage: str = "Float", nbytes: int = 16, order: str = "little") -> bytes:
    """Return an archive of PyTorch: `call` finds a storage in the memo at 9."""
    count = nbytes // {"Float": 4, "Bool": 1}[storage]
    stored = b"(" + text("storage") + f"ctorch\n{storage}Storage\n".encode() + text("0")
    stored += text("cpu") + integer(count) + b"tQq\t"
    data = {"a/data.pkl": PICKLE + b"](" + stored + call + b"e.", "a/data/0": bytes(nbytes)}
    return zipped({**data, "a/byteorder": order.encode()})


def tensor(size: list[int], stride: list[int], rest: bytes = b"") -> bytes:
    sizes, strides = (b"(" + b"".join(map(integer, row)) + b"t" for row in (size, stride))
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(h\tK\x00"
    return head + sizes + strides + b"\x89N" + rest + b"tR"


def old_script(module: object) -> bytes:
    return zipped({"a/model.json": json.dumps({"tensors": [], "mainModule": module}).encode()})


def flax(shape: list[int], name: str) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, name, b"abcd")))
    return bytes(msgpack.packb({"a": array}))


def long_names() -> bytes:
    block = tarfile.TarInfo("././@LongLink")
    block.type, block.size = tarfile.GNUTYPE_LONGNAME, 2
    return (block.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 1500


DTYPE: Final = b"cnumpy\ndtype\n("
SELF: Final = (
    DTYPE + text("V4") + b"K\x00K\x01tRq\x00(K\x03" + text("|") + b"N(" + text("a")
    + b"t}" + text("a") + b"h\x00K\x00\x86sK\x04K\x01K\x00tb"
)  # fmt: skip
SCALAR: Final = b"cnumpy.core.multiarray\nscalar\n"
VARIABLE: Final = b"ctorch.autograd.variable\nVariable\n"

SOURCES: Final[dict[str, Callable[[], bytes]]] = {
    "safetensors: more axes than NumPy has": lambda: safetensors([1] * 65, 4),
    "safetensors: 60,000 axes": lambda: safetensors([2**60] * 60_000),
    "safetensors: empty and huge": lambda: safetensors([0, 2**62]),
    "npy: empty and huge": lambda: npy("'f4'", f"(0, {2**62})"),
    "npy: more axes than NumPy has": lambda: npy("'f4'", f"({'1,' * 65})", 4),
    "npy: elements of no bytes": lambda: npy("'V0'", "(3,)"),
    "npy: text of no length": lambda: npy("'S'", "(0,)"),
    "npy: an array in an array": lambda: npy("'(2,3)f4'", "(1,)", 24),
    "npy: offset beyond an address": lambda: npy(
        f"{{'names': ['a'], 'formats': ['f4'], 'offsets': [{2**70}]}}", "(1,)", 8
    ),
    "torch: empty and huge": lambda: pt(tensor([0, 2**62], [1, 1])),
    "torch: stride beyond an address": lambda: pt(tensor([1, 1], [2**70, 1])),
    "torch: odd big-endian storage": lambda: pt(
        b"ctorch._utils\n_rebuild_tensor_v3\n(h\tK\x00K\x01\x85K\x01\x85\x89Nctorch\nfloat32\ntR",
        "Bool", 7, "big",
    ),
    "torch: a sign of truth values": lambda: pt(
        tensor([1], [1], b"}" + text("neg") + b"\x88s"), "Bool"
    ),
    "torch: a variable whose state is itself": lambda: pt(
        VARIABLE + b")Rq\x00(h\x00\x89\x89Ntb"
    ),
    "torch: two variables that are each other": lambda: pt(
        VARIABLE + b")Rq\x00" + VARIABLE + b")Rq\x01(h\x00\x89tb0h\x00(h\x01\x89tb"
    ),
    "pickle: dtype that is no grammar": lambda: PICKLE + b"(" + ARRAY + SCALAR + DTYPE
    + text("(,)f4") + b"K\x00K\x01tRU\x04abcd\x86Rt.",
    "pickle: dtype in itself": lambda: PICKLE + b"(" + ARRAY + SCALAR + SELF
    + b"U\x04abcd\x86Rt.",
    "flax: dtype that is no grammar": lambda: flax([1], "(,)f4"),
    "flax: more axes than NumPy has": lambda: flax([1] * 65, "float32"),
    "script: parameters that are no objects": lambda: old_script({"parameters": [5]}),
    "script: no parameters": lambda: old_script({"parameters": None}),
    "script: a tensor's number is a word": lambda: old_script(
        {"parameters": [{"tensorId": "abc"}]}
    ),
    "tar: 1,500 names of names": long_names,
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_makes_no_sense_is_a_format_error(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(SOURCES[name]())

    with pytest.raises(errors.FormatError) as caught:
        everything(tmp_path / "x")

    assert not isinstance(caught.value, errors.UnsupportedError)


def test_an_index_whose_parts_are_lists_is_a_format_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"a": ["x"]}}')

    with pytest.raises(errors.FormatError):
        everything(tmp_path)


@pytest.mark.parametrize("shape", [(1,) * 65, (0, 2**63), (-1,), (True,), (2.0,), (0, 2**62)])
def test_shapes_that_no_array_has(shape: tuple[Any, ...]) -> None:
    with pytest.raises(errors.FormatError, match="no array has such a shape"):
        check_shape(shape, 4)


def test_shapes_of_real_arrays() -> None:
    assert check_shape([0, 2**40], 8) == (0, 2**40)
    assert check_shape((1,) * 64, 8) == (1,) * 64


def test_slices_with_other_axes_than_their_array() -> None:
    with pytest.raises(errors.FormatError, match="other axes"):
        joined("a", (2, 2), [Slice((0,), Lazy.of(np.zeros((2, 2))))])


def test_integers_of_protocol_buffers_have_64_bits() -> None:
    assert wire.varint(b"\xff" * 9 + b"\x01", 0) == (2**64 - 1, 10)
    with pytest.raises(errors.FormatError, match="64 bits"):
        wire.varint(b"\xff" * 9 + b"\x7f", 0)


# ---- small files that unfold


def _record(state: bytes) -> bytes:
    return b"c__torch__\nM\n)\x81" + state + b"b"


def _doubled(first: bytes, step: Callable[[int], bytes], count: int = 60) -> bytes:
    """Return a value that holds the one before twice, and so on: 2^count when unfolded."""
    return first + b"q\x00" + b"".join(step(n) + b"q" + bytes([n + 1]) for n in range(count))


def _twice(n: int) -> bytes:
    return b"](h" + bytes([n]) + b"h" + bytes([n]) + b"e"


def _module(children: bytes) -> bytes:
    state = b"}(" + text("_parameters") + b"}" + text("_modules") + children + b"u"
    return b"ctorch.nn\nM\n)\x81" + state + b"b"


def _both(name: bytes) -> bytes:
    return b"}(" + text("a") + name + text("b") + name + b"u"


LISTS: Final = b"](" + _doubled(b"]", _twice)
DEEP: Final = b"](" + b"]" * 5000 + b"a" * 4999
RECONSTRUCT: Final = b"ccopyreg\n_reconstructor\n("
MODULE_IN_ITSELF: Final = (
    b"ctorch.nn\nM\n)\x81q\x00}(" + text("_parameters") + b"}" + text("_modules")
    + _both(b"h\x00") + b"ub"
)  # fmt: skip
SCRIPT_IN_ITSELF: Final = b"c__torch__\nM\n)\x81q\x00" + _both(b"h\x00") + b"b"
FIELDS: Final = _doubled(
    DTYPE + text("f4") + b"K\x00K\x01tR",
    lambda n: DTYPE + text("V8") + b"K\x00K\x01tR(K\x03" + text("|") + b"N(" + text("a")
    + text("b") + b"t}(" + b"".join(text(k) + b"h" + bytes([n]) + b"K\x00\x86" for k in "ab")
    + b"uK\x08K\x01K\x00tb",
)  # fmt: skip


def _script(data: bytes) -> bytes:
    return zipped({"a/data.pkl": PICKLE + data + b".", "a/constants.pkl": PICKLE + b")."})


UNFOLDING: Final[dict[str, bytes]] = {
    "a class that is a list": PICKLE + LISTS + RECONSTRUCT + b"h\x3cNNtRe.",
    "a base that is a list": PICKLE + LISTS + RECONSTRUCT + b"ca\nb\nh\x3cNtRe.",
    "a class that is a deep list": PICKLE + DEEP + RECONSTRUCT + b"ca\nb\n](" + b"]" * 2000
    + b"a" * 1999 + b"eNtRe.",
    "a persistent id that is records": zipped({"a/data.pkl": PICKLE + _doubled(
        b"ca\nb\n)R", lambda n: b"ca\nb\nh" + bytes([n]) + b"h" + bytes([n]) + b"\x86R", 40)
        + b"h\x28Q."}),
    "a persistent id that is dicts": zipped({"a/data.pkl": PICKLE + _doubled(
        b"ccollections\nOrderedDict\n)R",
        lambda n: b"ccollections\nOrderedDict\n)R" + _both(b"h" + bytes([n]))[1:], 40)
        + b"h\x28Q."}),
    "a version that is a list": zipped({"a/data.pkl": PICKLE + b"}("
        + text("pytorch-lightning_version") + LISTS + b"eu."}),
    "a layout that is a list": zipped({"a/data.pkl": PICKLE + LISTS
        + b"ctorch._utils\n_rebuild_sparse_tensor\n(h\x3c(NNNNttRe."}),
    "modules that share modules": zipped({"a/data.pkl": PICKLE + _doubled(
        _module(b"}"), lambda n: _module(_both(b"h" + bytes([n])))) + b"."}),
    "script objects that share objects": _script(_doubled(
        _record(b"}"), lambda n: _record(_both(b"h" + bytes([n]))))),
    "a type whose fields share types": PICKLE + b"(" + ARRAY + FIELDS + b"t.",
}  # fmt: skip


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail, instead of hanging, after some seconds."""
    monkeypatch.setattr("ckptfmt.migrate.source.MAX_NODES", 20_000)  # 100 times quicker
    monkeypatch.setattr("ckptfmt.migrate.modules.MAX_MODULES", 2_000)
    rang = []

    def late(*_: object) -> None:
        rang.append(True)  # what makes messages may swallow the error
        raise AssertionError("takes too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not rang


def arranged(path: pathlib.Path) -> None:
    """Open a source, arrange it first, then read all of it."""
    assert migrate.open(path).layout is not None
    everything(path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", UNFOLDING)
def test_what_unfolds_without_end_is_refused_at_once(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(UNFOLDING[name])

    with pytest.raises(errors.CheckpointError):
        arranged(tmp_path / "x")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "data",
    [
        zipped({"a/data.pkl": PICKLE + MODULE_IN_ITSELF + b"."}),
        _script(SCRIPT_IN_ITSELF),
    ],
    ids=["module", "script"],
)
def test_a_module_in_itself_costs_nothing(data: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(data)

    assert list(migrate.open(tmp_path / "x").arrays()) == []
    assert migrate.open(tmp_path / "x").layout.state is not None


def test_a_class_that_is_no_name_stays_with_its_object(tmp_path: pathlib.Path) -> None:
    call = b"cbuiltins\ngetattr\n(ca\nOuter\n" + text("Inner") + b"tR"
    made = RECONSTRUCT + call + b"cbuiltins\nobject\n}" + text("n") + b"K\x01stR"
    (tmp_path / "x").write_bytes(PICKLE + b"(" + ARRAY + made + b"t.")

    found = migrate.open(tmp_path / "x").tree()[1]

    assert found.state == {"n": 1}
    assert found.args[0].cls == "builtins.getattr"


# ---- small files that cost much


def _repeated(value: bytes, call: bytes, count: int) -> bytes:
    return (
        PICKLE
        + b"("
        + ARRAY
        + value
        + b"q\x00"
        + call
        + b"q\x01"
        + b"]("
        + (b"h\x01h\x00\x85R" * count)
        + b"et."
    )


@pytest.mark.parametrize(
    "data",
    [
        _repeated(b"](" + b"N" * 60_000 + b"e", b"cbuiltins\ntuple\n", 8000),
        _repeated(
            b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(20_000)) + b"u",
            b"ccollections\nOrderedDict\n", 300,
        ),
        PICKLE + b"(" + ARRAY + text("x" * 60_000) + b"q\x00" + text("latin1") + b"q\x02](" + (
            b"c_codecs\nencode\nh\x00h\x02\x86R" * 3000) + b"et.",
    ],
    ids=["tuples", "dicts", "bytes"],
)  # fmt: skip
def test_calls_copy_little_more_than_the_file_holds(
    data: bytes, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "x").write_bytes(data)

    with pytest.raises(errors.FormatError, match="copies its parts too often"):
        migrate.open(tmp_path / "x")


def test_tensors_together_repeat_a_storage_no_more_than_one_may(tmp_path: pathlib.Path) -> None:
    whole = b"".join(tensor([2**24 - n, 1], [0, 1]) for n in range(3))
    (tmp_path / "x").write_bytes(pt(whole))

    with pytest.raises(errors.FormatError, match="storages too often"):
        migrate.open(tmp_path / "x")


def test_tied_tensors_count_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(pt(tensor([2**24, 1], [0, 1]) * 3))

    assert len(list(migrate.open(tmp_path / "x").arrays())) == 4


def test_keys_that_share_one_hash_are_not_hashed() -> None:
    keys = [key_of(n * (2**61 - 1)) for n in range(1, 100)]

    assert [type(key) for key in keys if isinstance(key, Key)] == [Key] * sum(
        (n * (2**61 - 1)).bit_length() > 64 for n in range(1, 100)
    )
    assert len({key for key in keys if type(key) is int}) < 20


def test_slices_side_by_side_are_compared_in_little_time() -> None:
    one = Lazy.of(np.zeros((1, 1)))
    slices = [Slice((0, n), one) for n in range(20_000)]

    assert joined("a", (1, 20_000), slices).shape == (1, 20_000)
    with pytest.raises(errors.FormatError, match="once"):
        joined("a", (1, 20_000), [*slices[1:], slices[7]])


# ---- what is left out is told


def test_attributes_of_dicts_and_arrays_are_told(tmp_path: pathlib.Path) -> None:
    state = b"}" + text("hooked") + b"K\x01s"
    attributed = b"ccollections\nOrderedDict\n)R" + text("w") + tensor([1], [1]) + state
    (tmp_path / "x").write_bytes(pt(attributed + b"bs" + state + b"b"))

    report = migrate.open(tmp_path / "x").report

    assert [(note.path, "hooked" in note.text) for note in report.notes] == [("1", True)]
    assert report.items[-1].note == "left out what was set on it: hooked"


def test_state_of_a_parameter_is_told(tmp_path: pathlib.Path) -> None:
    call = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor([1], [1])
    (tmp_path / "x").write_bytes(pt(call + b"\x88N}" + text("tag") + b"K\x01stR"))

    notes = [item.note for item in migrate.open(tmp_path / "x").report.items]

    assert "left out what was set on it: tag" in notes


def test_a_bytearray_of_other_text_is_refused(tmp_path: pathlib.Path) -> None:
    call = b"cbuiltins\nbytearray\n(" + text("€") + text("latin-1") + b"tR"
    (tmp_path / "x").write_bytes(PICKLE + b"(" + ARRAY + call + b"t.")

    with pytest.raises(errors.FormatError, match="malformed bytes"):
        migrate.open(tmp_path / "x")


def test_a_member_is_unpacked_once_for_all_readers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inflated = archives._inflated

    def counted(packed: memoryview, nbytes: int, file: str, member: str) -> bytes:
        seen.append(member)
        return inflated(packed, nbytes, file, member)

    monkeypatch.setattr(archives, "_inflated", counted)
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**6))
        archive.writestr("b", bytes(10**6))

    # Not `migrate.open`: for the way out it looks at the folder, too, and so once more.
    assert registry.find(Place(Folder(str(tmp_path)), "x")) is None

    assert sorted(seen) == ["a", "b"]
