"""Files that PyTorch writes today, read without it: every dtype, layout and container."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

import ckptfmt
from ckptfmt import errors, migrate

torch = pytest.importorskip("torch")
numbered = pytest.importorskip("ckptfmt_torch.numbered")

SAVES: Final[dict[str, Callable[..., None]]] = {
    "zip": torch.save,
    "stream": functools.partial(torch.save, _use_new_zipfile_serialization=False),
}
DTYPES: Final = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
    "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "uint16", "uint32", "uint64",
]  # fmt: skip


def _bits(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data


def _same(array: migrate.Lazy, tensor: Any) -> bool:
    whole = np.ascontiguousarray(np.asarray(array))
    little = (
        whole.astype(whole.dtype.newbyteorder("<")) if whole.dtype.kind in "fiuc" else whole
    )
    return array.shape == tuple(tensor.shape) and little.tobytes() == _bits(tensor)


@pytest.mark.parametrize("container", SAVES)
@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_comes_bit_by_bit(container: str, name: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    dtype = getattr(torch, name)
    base = torch.randint(0, 256, (6, 4 * dtype.itemsize), dtype=torch.uint8)
    base = base % 2 == 1 if name == "bool" else base.view(dtype)
    state = {"whole": base, "column": base.t()[1:], "part": base[2, 1:], "scalar": base[0, 0]}
    SAVES[container](state, tmp_path / "x")

    found = dict(migrate.open(tmp_path / "x").arrays())

    assert found.keys() == {(key,) for key in state}
    for key, tensor in state.items():
        assert _same(found[key,], tensor), key
    assert found["whole",].dtype.name == name


@pytest.mark.parametrize("container", SAVES)
def test_tied_tensors_stay_tied(container: str, tmp_path: pathlib.Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    SAVES[container](model.state_dict(), tmp_path / "x")

    done = migrate.migrate(tmp_path / "x", tmp_path / "store", verify=True)

    assert done.checkpoint.arrays["model/a.weight"].aliases == ("model/b.weight",)


def test_big_endian_archives_are_read(tmp_path: pathlib.Path) -> None:
    import zipfile

    tensors = {"f": torch.arange(5.0), "c": torch.arange(3).to(torch.complex64) * 1j,
               "b": torch.arange(4).to(torch.bfloat16), "i": torch.arange(3)}  # fmt: skip
    torch.save(tensors, tmp_path / "little")
    with (
        zipfile.ZipFile(tmp_path / "little") as old,
        zipfile.ZipFile(tmp_path / "big", "w") as new,
    ):
        widths = iter([4, 4, 2, 8])
        for info in old.infolist():
            data = old.read(info)
            if "/data/" in info.filename:
                word = next(widths)
                data = np.frombuffer(data, f"<u{word}").astype(f">u{word}").tobytes()
            new.writestr(info.filename, b"big" if "byteorder" in info.filename else data)

    found = dict(migrate.open(tmp_path / "big").arrays())

    for key, tensor in tensors.items():
        assert _same(found[key,], tensor), key


def test_pending_conjugation_is_carried_out(tmp_path: pathlib.Path) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j]).conj()
    torch.save({"x": value}, tmp_path / "x")

    found = dict(migrate.open(tmp_path / "x").arrays())

    assert np.asarray(found["x",]).tobytes() == value.resolve_conj().numpy().tobytes()


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_sparse_tensors_keep_their_parts(tmp_path: pathlib.Path) -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    torch.save({"coo": dense.to_sparse(), "csr": dense.to_sparse_csr()}, tmp_path / "x")

    state = migrate.migrate(tmp_path / "x", tmp_path / "store").checkpoint.load()

    coo, csr = state["model"]["coo"], state["model"]["csr"]
    again = torch.sparse_coo_tensor(
        torch.tensor(coo["indices"]), torch.tensor(coo["values"]), tuple(coo["size"])
    )
    assert torch.equal(again.to_dense(), dense)
    assert csr["values"].tolist() == [2.0, 3.0]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_tensors_keep_integers_and_scale(tmp_path: pathlib.Path) -> None:
    value = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 10, torch.quint8)
    torch.save({"q": value}, tmp_path / "x")

    found = dict(migrate.open(tmp_path / "x").arrays())

    (array,) = found.values()
    assert _same(array, value.int_repr())


def _trained() -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("container", SAVES)
def test_a_torch_file_goes_on_in_a_live_model(container: str, tmp_path: pathlib.Path) -> None:
    """Through `ckptfmt_torch.restore`: equal outputs, and an equal next step."""
    import ckptfmt_torch

    def build() -> tuple[Any, Any]:
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        )
        return model, torch.optim.Adam(model.parameters(), lr=0.02)

    def step(model: Any, optimizer: Any) -> Any:
        optimizer.zero_grad()
        model(torch.ones(5, 4)).square().sum().backward()
        optimizer.step()
        return model(torch.ones(3, 4))

    model, optimizer = build()
    step(model, optimizer)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    SAVES[container](saved, tmp_path / "x.pt")
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint
    fresh, other = build()

    with pytest.raises(errors.NotFoundError, match="restore with rng=False"):
        ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other)
    ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other, rng=False)

    assert torch.equal(fresh(torch.ones(3, 4)), model(torch.ones(3, 4)))
    assert torch.equal(step(fresh, other), step(model, optimizer))


OPTIMIZERS: Final[dict[str, Callable[..., Any]]] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
    "numbers only": lambda groups: torch.optim.SGD(groups, lr=0.02),
}


def _alike(kind: str, *, turned: bool = False) -> tuple[Any, Any, Callable[[], Any]]:
    """Return a network whose layers are of one shape, its optimizer, and a step of it."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    groups = [
        {"params": list(model[2].parameters()), "lr": 0.5},
        {"params": [*model[0].parameters(), *model[1].parameters()]},
    ]
    optimizer = OPTIMIZERS[kind](groups[::-1] if turned else groups)

    def step() -> Any:
        optimizer.zero_grad()
        model(torch.arange(8.0).reshape(2, 4)).square().sum().backward()
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    return model, optimizer, step


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_numbered_parameters_go_on_in_their_order(kind: str, tmp_path: pathlib.Path) -> None:
    """Shapes that repeat prove no names: the order is taken, as torch takes it."""
    import ckptfmt_torch

    model, optimizer, step = _alike(kind)
    step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()},
               tmp_path / "x.pt")  # fmt: skip
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint
    fresh, other, again = _alike(kind)

    report = ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other, rng=False)

    assert any("order" in finding.reason for finding in report.findings)
    for one, two in zip(again(), step(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_numbered_parameters_in_other_groups_are_refused(
    kind: str, tmp_path: pathlib.Path
) -> None:
    import ckptfmt_torch

    model, optimizer, step = _alike(kind)
    step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()},
               tmp_path / "x.pt")  # fmt: skip
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint
    fresh, other, _ = _alike(kind, turned=True)
    before = [parameter.detach().clone() for parameter in fresh.parameters()]

    with pytest.raises(errors.MismatchError, match="in the groups and the order"):
        ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other, rng=False)

    for one, two in zip(fresh.parameters(), before, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("saved", "built"), [("momentum", "adam"), ("adam", "momentum")])
def test_the_state_of_another_optimizer_is_refused(
    saved: str, built: str, tmp_path: pathlib.Path
) -> None:
    """A file of torch names no class: what is kept for a parameter tells it."""
    import ckptfmt_torch

    model, optimizer, step = _alike(saved)
    step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()},
               tmp_path / "x.pt")  # fmt: skip
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint
    fresh, other, _ = _alike(built)

    with pytest.raises(errors.MismatchError, match="another optimizer"):
        ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other, rng=False)

    assert not other.state


@pytest.mark.parametrize("kind", numbered.KEPT, ids=lambda kind: kind.__name__)
def test_what_each_optimizer_keeps_is_known(kind: type[Any]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    more = {"amsgrad": True} if "amsgrad" in kind([weight]).defaults else {}
    more |= {"momentum": 0.9} if "momentum" in kind([weight]).defaults else {}
    more |= {"centered": True} if "centered" in kind([weight]).defaults else {}
    optimizer = kind([weight], lr=0.1, **more)
    weight.grad = torch.ones(3)
    optimizer.step()

    assert optimizer.state[weight].keys() <= numbered.KEPT[kind]


def test_a_moment_of_another_shape_is_refused(tmp_path: pathlib.Path) -> None:
    import ckptfmt_torch

    def build(*, turned: bool) -> tuple[Any, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        parameters = [*model.parameters()]
        return model, torch.optim.Adam(parameters[::-1] if turned else parameters)

    model, optimizer = build(turned=False)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()},
               tmp_path / "x.pt")  # fmt: skip
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint
    fresh, other = build(turned=True)

    with pytest.raises(errors.MismatchError, match="another order"):
        ckptfmt_torch.restore(checkpoint, model=fresh, optimizer=other, rng=False)


@pytest.mark.parametrize("container", SAVES)
def test_a_migrated_run_gives_equal_predictions(container: str, tmp_path: pathlib.Path) -> None:
    model, optimizer = _trained()
    saved = {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "args": {"lr": 0.01}}  # fmt: skip
    SAVES[container](saved, tmp_path / "x.pt")

    done = migrate.migrate(tmp_path / "x.pt", tmp_path / "store", verify=True)

    state = done.checkpoint.load()
    fresh = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    fresh.load_state_dict({k: torch.tensor(v) for k, v in state["model"].items()})
    rows = torch.randn(7, 4)
    assert torch.equal(fresh.eval()(rows), model.eval()(rows))
    assert done.checkpoint.counters == {"epoch": 3}
    assert done.checkpoint.hyperparameters == {"lr": 0.01}
    moments = state["optimizer"]["state"]
    for number, parameter in enumerate(model.parameters()):  # three have one shape: no names
        kept = optimizer.state[parameter]["exp_avg"].numpy()
        assert moments[number]["exp_avg"].tobytes() == kept.tobytes(), number


def test_a_sharded_bin_folder_is_one_model(tmp_path: pathlib.Path) -> None:
    parts = {
        "p-1.bin": {"a": torch.ones(3)},
        "p-2.bin": {"b": torch.zeros(2), "c": torch.ones(1)},
    }
    for file, state in parts.items():
        torch.save(state, tmp_path / file)
    index = {key: file for file, state in parts.items() for key in state}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))

    for name in ("", "p-2.bin", "pytorch_model.bin.index.json"):
        source = migrate.open(tmp_path / name)
        assert source.format == "torch-zip-sharded", name
        assert [path for path, _ in source.arrays()] == [("a",), ("b",), ("c",)], name

    (tmp_path / "p-1.bin").unlink()
    with pytest.raises(errors.NotFoundError, match="missing"):
        migrate.open(tmp_path / "p-2.bin")


def test_a_whole_pickled_model_gives_its_state_dict(tmp_path: pathlib.Path) -> None:
    model, _ = _trained()
    torch.save(model, tmp_path / "x")

    checkpoint = migrate.migrate(tmp_path / "x", tmp_path / "store").checkpoint

    stored = checkpoint.load(select="model")["model"]
    assert list(stored) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert stored[name].tobytes() == _bits(tensor), name


def test_torch_need_not_be_there(tmp_path: pathlib.Path) -> None:
    import subprocess
    import sys

    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ckptfmt import migrate\n"
        "print(migrate.migrate(sys.argv[1], sys.argv[2]).report.format)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.pt", tmp_path / "store"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "torch-zip"
    assert ckptfmt.open(tmp_path / "store").latest().load()["model"]["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", [name for name in DTYPES if "fnuz" not in name])
def test_an_export_loads_with_weights_only(name: str, tmp_path: pathlib.Path) -> None:
    dtype = getattr(torch, name)
    base = torch.arange(12).reshape(3, 4).to(dtype)
    torch.save({"w": base, "tied": base, "scalar": base[1, 1]}, tmp_path / "x.pt")
    checkpoint = migrate.migrate(tmp_path / "x.pt", tmp_path / "store").checkpoint

    migrate.export(checkpoint, tmp_path / "out.pt")

    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["w"].dtype == dtype
    assert _bits(found["w"]) == _bits(base)
    assert found["w"].data_ptr() == found["tied"].data_ptr()
    assert found["scalar"].shape == ()
