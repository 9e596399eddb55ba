"""DeepSpeed's ZeRO 3 and universal folders: as its own converters join them, bit by bit."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate import registry, zero3
from ckptfmt.migrate.files import place
from ckptfmt.migrate.source import Lazy
from tests.migrate import corpus

MADE: Final = corpus.OWN / "made"
STEP: Final = "global_step3"
UNIVERSAL: Final = "global_step3_universal"
SHAPES: Final = ({"a": (3, 50), "b": (7,)}, {"c": (10, 11), "d": ()})
FROZEN: Final = {"e": (5, 2)}


def _converted(folder: pathlib.Path, name: str, key: str) -> Any:
    """Return one array that DeepSpeed's own converter made, read as a file of torch."""
    found = registry.find(place(folder / UNIVERSAL / "zero" / name / f"{key}.pt"))
    assert found is not None
    return np.asarray(found.root["param"] if isinstance(found.root, dict) else found.root)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_each_array_is_that_of_deepspeeds_converter(stage: str) -> None:
    tree = migrate.open(MADE / stage).tree()

    masters = tree["module"] if stage == "zero3" else tree["master"]
    assert list(tree["optimizer"]["state"]) == [
        "a.weight", "a.bias", "norm.weight", "norm.bias", "b.weight", "scalar",
    ]  # fmt: skip
    for name, state in tree["optimizer"]["state"].items():
        for key in ("exp_avg", "exp_avg_sq", "fp32"):
            found = np.asarray(masters[name] if key == "fp32" else state[key])
            assert found.shape == tree["module"][name].shape
            assert found.tobytes() == _converted(MADE / stage, name, key).tobytes(), name
        assert np.asarray(state["step"]) == 3
    lrs = {
        name: group["lr"] for group in tree["optimizer"]["groups"] for name in group["params"]
    }
    assert (lrs["a.weight"], lrs["norm.bias"], lrs["scalar"]) == (0.01, 0.01, 0.02)
    assert np.asarray(tree["module"]["seen"]).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_universal_folder_holds_what_its_set_holds(stage: str) -> None:
    one = migrate.open(MADE / stage / STEP)
    for name in (UNIVERSAL, "latest_universal"):
        other = migrate.open(MADE / stage / name)

        assert (one.format, other.format) == ("deepspeed-zero", "deepspeed-universal")
        for part in ("module", "optimizer", *(["master"] if stage == "zero2" else [])):
            assert _bits(other.tree()[part]) == _bits(one.tree()[part])


def _bits(node: Any) -> Any:
    if isinstance(node, Lazy):
        return node.dtype, node.shape, np.asarray(node).tobytes()
    if isinstance(node, dict):
        return {key: _bits(value) for key, value in node.items()}
    return node


@pytest.mark.parametrize("name", ["zero2", "zero3", f"zero2/{UNIVERSAL}", f"zero3/{UNIVERSAL}"])
def test_they_migrate_whole(name: str, tmp_path: pathlib.Path) -> None:
    done = migrate.migrate(MADE / name, tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    assert {"model/frozen.weight", "model/a.weight"} <= set(done.checkpoint.arrays)
    assert done.checkpoint.arrays["model/frozen.weight"].dtype == "BF16"
    assert done.checkpoint.counters["epoch"] == 3


@pytest.mark.parametrize(
    "named", ["", "latest", STEP, f"{STEP}/zero_pp_rank_2_mp_rank_00_model_states.pt",
              f"{STEP}/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"],
)  # fmt: skip
def test_a_set_of_stage_3_is_found_by_any_of_its_names(named: str) -> None:
    source = migrate.open(MADE / "zero3" / named)

    assert source.format == "deepspeed-zero"
    assert len(source.files) == 6 + (named in ("", "latest"))


def _made(world: int) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Return (what is true, each rank's model states, each rank's optimizer states)."""
    rng = np.random.default_rng(7)
    truth = {
        name: {k: rng.normal(size=s).astype("<f4") for k in ("fp32", "exp_avg")}
        for group in (*SHAPES, FROZEN)
        for name, s in group.items()
    }

    def part(name: str, key: str, rank: int) -> Any:
        flat = truth[name][key].reshape(-1)
        each = math.ceil(len(flat) / world)
        return np.resize(np.append(flat, np.full(each * world, 9.0, "<f4")), each * world)[
            rank * each : (rank + 1) * each
        ]

    models, ranks = [], []
    for rank in range(world):
        flats = {
            key: [
                Lazy.of(np.concatenate([part(name, key, rank) for name in group]))
                for group in SHAPES
            ]
            for key in ("fp32", "exp_avg")
        }
        empty = {name: Lazy.of(np.empty(0, np.float16)) for name in truth}
        models.append(
            {
                "module": {**empty, "seen": Lazy.of(np.ones(3)), "tied": empty["a"]},
                "param_shapes": [dict(group) for group in SHAPES],
                "frozen_param_shapes": dict(FROZEN),
                "frozen_param_fragments": {
                    n: Lazy.of(part(n, "fp32", rank).astype("f2")) for n in FROZEN
                },
                "buffer_names": ["seen"], "shared_params": {"tied": "a"},
                "optimizer": None, "dp_world_size": world, "mp_world_size": 1,
            }
        )  # fmt: skip
        state = {n: {"exp_avg": flats["exp_avg"][n], "step": n + 3} for n in range(2)}
        ranks.append(
            {
                "optimizer_state_dict": {
                    "zero_stage": 3, "partition_count": world, "overflow": rank == 1,
                    "fp32_flat_groups": flats["fp32"],
                    "optimizer_state_dict": {
                        "state": state,
                        "param_groups": [{"lr": 0.5, "params": [0, 1]}],
                    },
                }
            }
        )  # fmt: skip
    return truth, models, ranks


@pytest.mark.parametrize("world", [1, 2, 3, 8, 200])
def test_ranks_of_stage_3_are_joined_by_the_documented_layout(world: int) -> None:
    truth, models, ranks = _made(world)

    joined = zero3.join(models, ranks)

    assert not isinstance(joined, str), joined
    root, _ = joined
    for group, step in zip(SHAPES, (3, 4), strict=True):
        for name in group:
            state = root["optimizer"]["state"][name]
            assert np.asarray(root["module"][name]).tobytes() == truth[name]["fp32"].tobytes()
            assert np.asarray(state["exp_avg"]).tobytes() == truth[name]["exp_avg"].tobytes()
            assert state["step"] == step
    assert (
        np.asarray(root["module"]["e"]).tobytes() == truth["e"]["fp32"].astype("f2").tobytes()
    )
    assert root["module"]["tied"] is root["module"]["a"]
    assert root["optimizer"]["groups"] == [{"lr": 0.5, "params": ["a", "b", "c", "d"]}]
    overflows = [rank["optimizer_state_dict"]["overflow"] for rank in root["zero"].values()]
    assert overflows == [n == 1 for n in range(world)]


def _optimizer(rank: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = rank["optimizer_state_dict"]
    return found


def _other_stage(models: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["zero_stage"] = 2


def _other_cut(models: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["partition_count"] = 4


def _groups_of_ranks(models: Any, ranks: Any) -> None:
    _optimizer(ranks[0])["ds_zero_partition_groups"] = [{"partition_count": 1}]


def _other_shape(models: Any, ranks: Any) -> None:
    models[1]["param_shapes"][0]["a"] = (50, 3)


def _more(models: Any, ranks: Any) -> None:
    for model in models:
        model["param_shapes"][1]["f"] = (4,)


def _fewer(models: Any, ranks: Any) -> None:
    for model in models:
        del model["param_shapes"][1]["c"]


def _short(models: Any, ranks: Any) -> None:
    flat = _optimizer(ranks[1])["fp32_flat_groups"]
    flat[0] = Lazy.of(np.asarray(flat[0])[:-1])


def _other_options(models: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["optimizer_state_dict"]["param_groups"][0]["lr"] = 0.25


def _other_step(models: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["optimizer_state_dict"]["state"][0]["step"] = 8


def _other_slots(models: Any, ranks: Any) -> None:
    del _optimizer(ranks[1])["optimizer_state_dict"]["state"][1]["exp_avg"]


def _frozen_part(models: Any, ranks: Any) -> None:
    models[1]["frozen_param_fragments"]["e"] = Lazy.of(np.zeros(4, "f2"))


def _without_parts(models: Any, ranks: Any) -> None:
    for model in models:
        model["module"]["g"] = Lazy.of(np.empty(0, np.float16))


def _tensor_parallel(models: Any, ranks: Any) -> None:
    models[0]["mp_world_size"] = 2


@pytest.mark.parametrize(
    "change",
    [
        _other_stage, _other_cut, _groups_of_ranks, _other_shape, _more, _fewer, _short,
        _other_options, _other_step, _other_slots, _frozen_part, _without_parts,
        _tensor_parallel,
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_joined(change: Callable[[Any, Any], None]) -> None:
    _, models, ranks = _made(2)
    assert not isinstance(zero3.join(models, ranks), str)
    change(models, ranks)

    assert isinstance(zero3.join(models, ranks), str)


def test_a_weight_that_was_not_cut_must_round() -> None:
    truth, models, ranks = _made(2)
    for model in models:
        model["module"]["b"] = Lazy.of(truth["b"]["fp32"].astype("f2"))
    joined = zero3.join(models, ranks)
    assert not isinstance(joined, str)
    assert np.asarray(joined[0]["module"]["b"]).tobytes() == truth["b"]["fp32"].tobytes()

    models[0]["module"]["b"] = Lazy.of(np.zeros(7, "f2"))
    joined = zero3.join(models, ranks)

    assert not isinstance(joined, str)
    with pytest.raises(errors.FormatError, match="not of one save"):
        np.asarray(joined[0]["module"]["b"])


def test_a_rank_of_stage_3_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    for kind in ("zero_pp_rank_{}_mp_rank_00_model_states.pt",
                 "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"):  # fmt: skip
        folder = tmp_path / kind[:4]
        shutil.copytree(MADE / "zero3" / STEP, folder)
        (folder / kind.format(1)).unlink()

        with pytest.raises(errors.NotFoundError) as caught:
            migrate.open(folder)

        assert caught.value.where["file"] == kind.format(1)


def test_model_states_of_stage_3_alone_say_that_the_weights_are_missing(
    tmp_path: pathlib.Path,
) -> None:
    for file in (MADE / "zero3" / STEP).glob("*model_states.pt"):
        shutil.copy(file, tmp_path)

    notes = migrate.open(tmp_path).report.notes

    assert "which hold the weights, are missing" in " ".join(note.text for note in notes)


def test_a_file_of_a_universal_folder_that_does_not_fit_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    shutil.copytree(MADE / "zero3" / UNIVERSAL, tmp_path / "x")
    parameters = tmp_path / "x" / "zero"
    shutil.copy(parameters / "a.bias" / "fp32.pt", parameters / "a.weight" / "fp32.pt")

    with pytest.raises(errors.FormatError, match="another shape than its file"):
        migrate.open(tmp_path / "x")

    (parameters / "a.weight" / "fp32.pt").unlink()
    with pytest.raises(errors.NotFoundError) as caught:
        migrate.open(tmp_path / "x")
    assert caught.value.where["file"] == "zero/a.weight/fp32.pt"
