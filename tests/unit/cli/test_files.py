"""`ckptfmt export`, `pack` and `unpack`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import ckptfmt
from ckptfmt import Store

Cli = Callable[..., Any]


def test_export_writes_what_safetensors_reads(cli: Cli, store: Store) -> None:
    ran = cli("export", "run@2", "out.safetensors")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "exported 2 arrays (23.8 KiB) of checkpoint 2 to out.safetensors\n"
    arrays = safetensors.numpy.load_file("out.safetensors")
    stored = store[2].load()["model"]["fc/1"]["w"]
    (found,) = [a for a in arrays.values() if a.shape == stored.shape]
    assert found.tobytes() == stored.tobytes()


def test_export_of_a_selection(cli: Cli, empty: Store) -> None:
    empty.save({"model": {"a": np.zeros(2), "b": np.ones(2)}, "ema": {"a": np.ones(3)}})

    ran = cli("export", "run", "out.safetensors", "-s", "model/b", "-s", "ema/*", "--json")

    assert json.loads(ran.out) == {
        "url": "@/run",
        "number": 1,
        "file": "out.safetensors",
        "arrays": ["model/b", "ema/a"],
        "nbytes": 40,
    }
    assert len(safetensors.numpy.load_file("out.safetensors")) == 2


def test_existing_files_are_replaced_on_request_only(cli: Cli, store: Store) -> None:
    for command, name in (("export", "out.safetensors"), ("pack", "packed.safetensors")):
        file = pathlib.Path(name)
        file.write_bytes(b"precious")

        refused = cli(command, "run", name)

        assert (refused.status, refused.out) == (4, "")
        assert refused.err.startswith("error[conflict]: ")
        assert file.read_bytes() == b"precious"
        assert cli(command, "run", name, "--overwrite").status == 0
        assert file.read_bytes() != b"precious"


def test_a_selection_of_nothing_writes_no_file(cli: Cli, store: Store) -> None:
    assert cli("export", "run", "out.safetensors", "-s", "nothing").status == 3
    assert not pathlib.Path("out.safetensors").exists()


@pytest.mark.parametrize("name", ["out.hdf", "out.ckpt", "out", "safetensors"])
def test_what_to_export_is_not_guessed(cli: Cli, store: Store, name: str) -> None:
    refused = cli("export", "run", name)

    assert refused.status == 2
    assert ".safetensors" in refused.err
    assert not pathlib.Path(name).exists()


def test_without_a_model_export_asks_what_to_export(cli: Cli, empty: Store) -> None:
    empty.save({"weights": {"a": np.zeros(2)}})

    refused = cli("export", "run", "out.safetensors")

    assert refused.status == 3
    assert "--select" in refused.err
    assert "weights" in refused.err
    assert cli("export", "run", "out.safetensors", "-s", "weights").status == 0


def test_a_bundle_goes_into_a_store_not_a_checkpoint(cli: Cli, store: Store) -> None:
    assert cli("pack", "run@1", "one.safetensors").status == 0

    refused = cli("unpack", "one.safetensors", "other@3")

    assert refused.status == 2
    assert not list(pathlib.Path().glob("other*"))


def test_a_file_is_no_store(cli: Cli, store: Store) -> None:
    pathlib.Path("model.pt").write_bytes(b"PK")

    for command in ("show", "ls", "verify"):
        ran = cli(command, "model.pt")
        assert ran.status == 8
        assert "the folder of a store was expected" in ran.err


def test_pack_and_unpack_keep_the_checkpoint(cli: Cli, store: Store) -> None:
    packed = cli("pack", "run@2", "packed.safetensors")
    unpacked = cli("unpack", "packed.safetensors", "other")

    assert packed.out == "packed checkpoint 2 into packed.safetensors: 2 arrays, 23.8 KiB\n"
    assert unpacked.out == "unpacked packed.safetensors as checkpoint 1 of @/other\n"
    assert (packed.status, unpacked.status) == (0, 0)
    assert cli("diff", "run@2", "other@1").status == 0


def test_pack_and_unpack_as_json(cli: Cli, store: Store) -> None:
    packed = json.loads(cli("pack", "run@2", "packed.safetensors", "--json").out)
    unpacked = json.loads(cli("unpack", "packed.safetensors", "other", "--json").out)

    assert (packed["file"], packed["number"], packed["nbytes"]) == (
        "packed.safetensors",
        2,
        24_400,
    )
    assert packed["metrics"] == {"val_loss": 0.25, "acc": "NaN"}
    assert (unpacked["store"], unpacked["number"]) == ("@/other", 1)
    assert unpacked["identity"] == ckptfmt.open("other")[1].identity


def test_pack_of_weights_only(cli: Cli, store: Store) -> None:
    cli("pack", "run@2", "packed.safetensors", "--weights-only")

    assert list(ckptfmt.load("packed.safetensors")) == ["model"]


def test_names_of_bundles_and_stores_are_not_confused(cli: Cli, store: Store) -> None:
    assert cli("pack", "run", "packed.bin").status == 2
    assert cli("unpack", "run", "other").status == 2
    assert cli("unpack", "packed.safetensors", "other.safetensors").status == 2
    assert not pathlib.Path("packed.bin").exists()


def test_a_damaged_checkpoint_is_not_exported(cli: Cli, store: Store, damage: Any) -> None:
    damage.data(3)

    for command in ("export", "pack"):
        ran = cli(command, "run@3", "out.safetensors")

        assert (ran.status, ran.out) == (5, "")
        assert ran.err.startswith("error[integrity]: ")
        assert not pathlib.Path("out.safetensors").exists()
