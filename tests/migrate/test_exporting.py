"""Out again: what is exported reads back equal, through readers that share no code with it."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ckptfmt
from ckptfmt import cli, dtypes, errors, migrate
from tests.migrate import corpus


def _saved(path: pathlib.Path, model: dict[str, Any]) -> ckptfmt.Checkpoint:
    return ckptfmt.save({"model": model, "optimizer": {"m": np.ones(2)}}, path / "store")


def _rows(path: pathlib.Path) -> dict[str, tuple[Any, tuple[int, ...], bytes]]:
    return {
        str(name): (array.dtype, array.shape, np.asarray(array).tobytes())
        for (name,), array in migrate.open(path).arrays()
    }


def _model() -> dict[str, Any]:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "fc": {"weight": weight, "bias": np.zeros(3, np.float16)},
        "head": weight,
        "steps": np.array(7),
        "none": np.zeros((0, 5)),
    }


def test_a_npz_holds_each_name(tmp_path: pathlib.Path) -> None:
    model = _model()
    migrate.export(_saved(tmp_path, model), tmp_path / "x.npz")

    with np.load(tmp_path / "x.npz") as found:
        assert set(found) == {"fc.weight", "fc.bias", "head", "steps", "none"}
        assert found["fc.weight"].tobytes() == model["head"].tobytes()
        assert found["steps"].shape == ()


def test_a_npz_refuses_what_it_cannot_name(tmp_path: pathlib.Path) -> None:
    checkpoint = _saved(tmp_path, {"w": np.ones(3, ml_dtypes.bfloat16)})

    with pytest.raises(errors.UsageError, match="no name for this dtype"):
        migrate.export(checkpoint, tmp_path / "x.npz")

    assert not (tmp_path / "x.npz").exists()


def test_a_pt_file_reads_back_with_ties(tmp_path: pathlib.Path) -> None:
    model = _model()
    migrate.export(_saved(tmp_path, model), tmp_path / "x.pt")

    done = migrate.migrate(tmp_path / "x.pt", tmp_path / "again", verify=True)

    assert done.report.format == "torch-zip"
    assert done.checkpoint.arrays["model/fc.weight"].aliases == ("model/head",)
    flat = {"fc.weight": model["head"], "fc.bias": model["fc"]["bias"], "head": model["head"],
            "steps": model["steps"], "none": model["none"]}  # fmt: skip
    assert _rows(tmp_path / "x.pt") == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in flat.items()
    }


@pytest.mark.parametrize("name", [row.name for row in dtypes.DTYPES.values() if row.natural])
def test_each_dtype_goes_out_to_torch(name: str, tmp_path: pathlib.Path) -> None:
    dtype = dtypes.DTYPES[name].numpy
    array = np.arange(6).reshape(2, 3).astype(dtype)
    migrate.export(_saved(tmp_path, {"w": array}), tmp_path / "x.pt")

    assert _rows(tmp_path / "x.pt") == {"w": (dtype, (2, 3), array.tobytes())}


def test_shards_make_one_model(tmp_path: pathlib.Path) -> None:
    model = {f"w{n}": np.full(100, n, np.float32) for n in range(7)}
    files = migrate.export_shards(_saved(tmp_path, model), tmp_path / "hf", shard_nbytes=900)

    assert len(files) == 5
    assert sum(name.endswith(".safetensors") for name in files) == 4
    found = _rows(tmp_path / "hf" / files[0])
    assert found == {k: (v.dtype, v.shape, v.tobytes()) for k, v in model.items()}


def test_an_existing_file_stays(tmp_path: pathlib.Path) -> None:
    checkpoint = _saved(tmp_path, _model())
    (tmp_path / "x.pt").write_bytes(b"mine")

    with pytest.raises(errors.ConflictError):
        migrate.export(checkpoint, tmp_path / "x.pt")

    assert (tmp_path / "x.pt").read_bytes() == b"mine"
    migrate.export(checkpoint, tmp_path / "x.pt", overwrite=True)
    assert _rows(tmp_path / "x.pt")


def test_the_command_line_migrates_and_exports(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", w=np.arange(5))

    store = str(tmp_path / "store")
    assert cli.main(["migrate", str(tmp_path / "x.npz"), store, "--verify"]) == 0
    assert "1 array read back, equal bit by bit" in capsys.readouterr().out
    assert cli.main(["migrate", str(tmp_path / "x.npz"), store]) == 0
    assert "was there already: checkpoint 1" in capsys.readouterr().out
    assert cli.main(["export", store, str(tmp_path / "out.pt")]) == 0

    assert np.asarray(next(migrate.open(tmp_path / "out.pt").arrays())[1]).tolist() == [
        *range(5)
    ]


@pytest.mark.skipif(not corpus.HAS_H5PY, reason="h5py is not installed")
@pytest.mark.parametrize(
    ("entry", "suffix"),
    [("keras3-weights-snake", ".weights.h5"), ("keras-h5-keon-ddqn", ".h5")],
)
def test_weights_of_keras_go_back_to_where_they_were(
    entry: str, suffix: str, tmp_path: pathlib.Path
) -> None:
    """What `load_weights` looks at: arrays by name, and for old files the order of all."""
    import h5py

    (file,) = (corpus.OWN / "files" / entry).iterdir()
    checkpoint = migrate.migrate(file, tmp_path / "store").checkpoint

    migrate.export(checkpoint, tmp_path / f"x{suffix}")

    with h5py.File(file) as old, h5py.File(tmp_path / f"x{suffix}") as new:
        expected = {k: v for k, v in _contents(old).items() if not k.startswith("optimizer")}
        found = _contents(new)
    arrays = {name for name, value in expected.items() if isinstance(value, tuple) and value[1]}
    assert arrays
    assert {name: found[name] for name in arrays} == {name: expected[name] for name in arrays}
    if suffix == ".h5":
        attributes = {
            name for name in expected if name.endswith(("layer_names", "weight_names"))
        }
        assert attributes
        assert {n: found[n] for n in attributes} == {n: expected[n] for n in attributes}


def _contents(file: Any) -> dict[str, Any]:
    """Return arrays and attributes of an HDF5 file by name."""
    found: dict[str, Any] = {f"@{k}": np.asarray(v).tolist() for k, v in file.attrs.items()}

    def visit(name: str, node: Any) -> None:
        found.update({f"{name}@{k}": np.asarray(v).tolist() for k, v in node.attrs.items()})
        if hasattr(node, "dtype"):
            found[name] = (str(node.dtype), node.shape, node[()].tobytes())

    file.visititems(visit)
    return found


@pytest.mark.skipif(not corpus.HAS_H5PY, reason="h5py is not installed")
def test_what_did_not_come_from_keras_is_refused_with_the_way_out(
    tmp_path: pathlib.Path,
) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        checkpoint = store.save({"model": {"w": np.ones(3)}})

    with pytest.raises(errors.UsageError, match="did not come from Keras"):
        migrate.export(checkpoint, tmp_path / "x.weights.h5")

    assert not (tmp_path / "x.weights.h5").exists()


@pytest.mark.skipif(not corpus.HAS_H5PY, reason="h5py is not installed")
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_what_was_migrated_from_elsewhere_is_no_file_of_keras(
    suffix: str, tmp_path: pathlib.Path
) -> None:
    (source,) = (corpus.OWN / "files" / "torch-zip-candle-fortran").iterdir()
    checkpoint = migrate.migrate(source, tmp_path / "store").checkpoint

    with pytest.raises(errors.UsageError, match="Keras"):
        migrate.export(checkpoint, tmp_path / f"x{suffix}")

    assert not (tmp_path / f"x{suffix}").exists()
