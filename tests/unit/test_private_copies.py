"""The private copy that a save in the background makes: the same values, in small parts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest

from ckptfmt import tree
from ckptfmt._engine import stage
from ckptfmt._engine.threads import Threads

N: Final = 5 * stage.COPY_NBYTES // 8  # float64 numbers: some parts, and a rest
MIXED: Final = np.random.default_rng(1).random(N + 3)
LAYOUTS: Final = {
    "one run": MIXED,
    "two long rows": MIXED[: N // 2 * 2].reshape(2, -1),
    "a little more than one part": MIXED[: N // 4],
    "many short rows": MIXED[: N // 4 * 4].reshape(-1, 4),
    "transposed": MIXED[: N // 8 * 8].reshape(8, -1).T,
    "every other": MIXED[::2],
    "backwards": MIXED[::-1],
    "another byte order": MIXED.astype(">f8"),
    "one number": np.array(3.5),
    "nothing": np.empty((0, 4)),
}


def copied(arrays: dict[str, Any]) -> list[Any]:
    leaves = tree.flatten(arrays, None).leaves
    with Threads(2, "test") as threads:
        return [(leaf.path, leaf.array) for leaf in stage.Arena().copy(leaves, threads)]


def test_every_layout_is_copied_whole() -> None:
    found = copied(LAYOUTS)

    assert len(found) == len(LAYOUTS)
    for path, array in found:
        assert np.array_equal(array, LAYOUTS[path])
        assert array.flags.c_contiguous
        assert not np.may_share_memory(array, LAYOUTS[path])


@pytest.mark.parametrize("name", [*LAYOUTS][:4])
def test_no_call_copies_more_than_a_core_keeps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    copy_all = stage._copy_all

    def noted(batch: Any) -> None:
        parts.extend(target.nbytes for _, target in batch)
        copy_all(batch)

    monkeypatch.setattr(stage, "_copy_all", noted)
    copied({name: LAYOUTS[name]})

    assert sum(parts) == LAYOUTS[name].nbytes
    assert max(parts) <= stage.COPY_NBYTES
