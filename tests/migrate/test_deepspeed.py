"""DeepSpeed's ZeRO: the ranks' parts of an optimizer become one, or a reason why not."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate.readers import deepspeed
from ckptfmt.migrate.source import Lazy
from tests.migrate import corpus

SET: Final = corpus.OWN / "files" / "deepspeed-sockeye"
STEP: Final = "global_step4000"
GROUPS: Final = ({"a": (3, 50), "b": (7,)}, {"c": (10, 11)})


def _cut(values: list[np.ndarray[Any, Any]], world: int) -> list[np.ndarray[Any, Any]]:
    """Return a group's arrays behind one another, padded and cut as ZeRO 1 and 2 do."""
    flat = np.concatenate([value.reshape(-1) for value in values])
    padded = np.zeros(-(-len(flat) // (2 * world)) * 2 * world, np.float32)
    padded[: len(flat)] = flat
    return np.split(padded, world)


def _made(world: int, dtype: Any, *, padded: bool = True) -> tuple[Any, Any, Any]:
    """Return (what is true of each parameter, model states, each rank's optimizer states)."""
    rng = np.random.default_rng(7)
    truth = {
        name: {k: rng.normal(size=s).astype("<f4") for k in ("master", "exp_avg")}
        for group in GROUPS
        for name, s in group.items()
    }
    weights = {n: Lazy.of(np.asarray(t["master"]).astype(dtype)) for n, t in truth.items()}
    model = {
        "module": {**weights, "running": Lazy.of(np.ones(3))},
        "param_shapes": [dict(group) for group in GROUPS],
        "optimizer": None,
        "dp_world_size": world,
    }
    ranks = []
    for rank in range(world):
        state, masters = {}, []
        for n, group in enumerate(GROUPS):
            parts = {
                key: _cut([truth[name][key] for name in group], world)[rank]
                for key in ("master", "exp_avg")
            }
            if not padded and rank == world - 1:  # newer ones leave the padding out of these
                whole = sum(int(np.prod(shape)) for shape in group.values())
                size = len(parts["master"])
                parts["master"] = parts["master"][: whole - size * rank]
            step = Lazy.of(np.array(7, np.float32))
            state[n] = {"exp_avg": Lazy.of(parts["exp_avg"]), "step": step}
            masters.append(Lazy.of(parts["master"]))
        ranks.append(
            {
                "optimizer_state_dict": {
                    "zero_stage": 2,
                    "partition_count": [world, world],
                    "overflow": rank == 1,
                    "single_partition_of_fp32_groups": masters,
                    "base_optimizer_state": {
                        "state": state,
                        "param_groups": [{"lr": 0.5, "params": [n]} for n in range(2)],
                    },
                }
            }
        )
    return truth, model, ranks


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_are_joined_by_the_documented_layout(
    world: int, padded: bool, dtype: Any
) -> None:
    truth, model, ranks = _made(world, dtype, padded=padded)

    joined = deepspeed._join(model, ranks)

    assert not isinstance(joined, str), joined
    root, notes = joined
    for name, expected in truth.items():
        state = root["optimizer"]["state"][name]
        assert np.asarray(root["master"][name]).tobytes() == expected["master"].tobytes()
        assert np.asarray(state["exp_avg"]).tobytes() == expected["exp_avg"].tobytes()
        assert np.asarray(state["step"]) == 7
        assert np.asarray(root["module"][name]).dtype == dtype
    assert root["optimizer"]["groups"] == [
        {"lr": 0.5, "params": ["a", "b"]},
        {"lr": 0.5, "params": ["c"]},
    ]
    others = [root["zero"][str(n)]["optimizer_state_dict"]["overflow"] for n in range(world)]
    assert others == [n == 1 for n in range(world)]
    assert bool(notes) == any(
        sum(int(np.prod(s)) for s in group.values()) % (2 * world) for group in GROUPS
    )


def test_parameters_may_have_gaps_between_them() -> None:
    truth, model, ranks = _made(1, np.float32)
    state = _optimizer(ranks[0])
    for arrays, key in (
        (state["single_partition_of_fp32_groups"], 0),
        (state["base_optimizer_state"]["state"][0], "exp_avg"),
    ):
        whole = np.asarray(arrays[key])
        arrays[key] = Lazy.of(np.concatenate([whole[:150], np.full(4, 9, "<f4"), whole[150:]]))
    assert isinstance(deepspeed._join(model, ranks), str)
    state["param_alignment_paddings"] = [[4, 0], [0]]

    joined = deepspeed._join(model, ranks)

    assert not isinstance(joined, str), joined
    for name, expected in truth.items():
        assert np.asarray(joined[0]["master"][name]).tobytes() == expected["master"].tobytes()


def _optimizer(rank: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = rank["optimizer_state_dict"]
    return found


def _stage_3(model: Any, ranks: Any) -> None:
    _optimizer(ranks[0])["zero_stage"] = 3


def _tensor_parallel(model: Any, ranks: Any) -> None:
    model["mp_world_size"] = 2


def _short(model: Any, ranks: Any) -> None:
    masters = _optimizer(ranks[0])["single_partition_of_fp32_groups"]
    masters[0] = Lazy.of(np.zeros(2, np.float32))


def _other_options(model: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["base_optimizer_state"]["param_groups"][0]["lr"] = 0.25


def _other_shape(model: Any, ranks: Any) -> None:
    model["param_shapes"][0]["a"] = (50, 3)


def _other_step(model: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["base_optimizer_state"]["state"][0]["step"] = Lazy.of(
        np.array(8, np.float32)
    )


def _other_slots(model: Any, ranks: Any) -> None:
    del _optimizer(ranks[1])["base_optimizer_state"]["state"][0]["exp_avg"]


def _name_twice(model: Any, ranks: Any) -> None:
    model["param_shapes"][1] = {"b": (7,)}


def _other_cut(model: Any, ranks: Any) -> None:
    _optimizer(ranks[1])["partition_count"] = [4, 4]


@pytest.mark.parametrize(
    "change",
    [
        _stage_3, _tensor_parallel, _short, _other_options, _other_shape, _other_step,
        _other_slots, _name_twice, _other_cut,
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_joined(change: Callable[[Any, Any], None]) -> None:
    _, model, ranks = _made(2, np.float16)
    change(model, ranks)

    assert isinstance(deepspeed._join(model, ranks), str)


def test_weights_of_another_step_are_found(tmp_path: pathlib.Path) -> None:
    truth, model, ranks = _made(2, np.float16)
    model["module"]["c"] = Lazy.of(np.ones((10, 11), np.float16))

    joined = deepspeed._join(model, ranks)

    assert not isinstance(joined, str)
    assert np.asarray(joined[0]["master"]["a"]).tobytes() == truth["a"]["master"].tobytes()
    with pytest.raises(errors.FormatError, match="not of one save") as caught:
        np.asarray(joined[0]["master"]["c"])
    assert caught.value.where["path"] == "c"
    assert caught.value.where["differing"] == 110


@pytest.mark.parametrize(
    "named",
    ["", "latest", STEP, f"{STEP}/mp_rank_00_model_states.pt",
     f"{STEP}/zero_pp_rank_3_mp_rank_00_optim_states.pt"],
)  # fmt: skip
def test_a_set_is_found_by_any_of_its_names(named: str) -> None:
    source = migrate.open(SET / named)

    assert source.format == "deepspeed-zero"
    assert len(source.files) == 5 + (named in ("", "latest"))
    assert len(source.tree()["master"]) == 36


def test_runs_in_bfloat16_call_their_parts_so(tmp_path: pathlib.Path) -> None:
    shutil.copytree(SET / STEP, tmp_path / "x")
    for file in (tmp_path / "x").glob("zero_pp_rank_*"):
        file.rename(file.with_name(f"bf16_{file.name}"))

    for named in ("", "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"):
        source = migrate.open(tmp_path / "x" / named)
        assert source.format == "deepspeed-zero"
        assert len(source.files) == 5


def test_ranks_that_were_swapped_are_found(tmp_path: pathlib.Path) -> None:
    shutil.copytree(SET / STEP, tmp_path / "x")
    one, two = (tmp_path / "x" / f"zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in (1, 2))
    one.rename(tmp_path / "kept")
    two.rename(one)
    (tmp_path / "kept").rename(two)

    with pytest.raises(errors.FormatError, match="not of one save"):
        migrate.migrate(tmp_path / "x", tmp_path / "store")


def test_a_rank_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    shutil.copytree(SET / STEP, tmp_path / "x")
    (tmp_path / "x" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()

    with pytest.raises(errors.NotFoundError) as caught:
        migrate.open(tmp_path / "x")

    assert "rank_2" in str(caught.value.where["file"])


def test_weights_alone_are_a_file_of_torch(tmp_path: pathlib.Path) -> None:
    shutil.copy(SET / STEP / deepspeed.MODEL, tmp_path / deepspeed.MODEL)

    assert migrate.open(tmp_path / deepspeed.MODEL).format == "torch-zip"
