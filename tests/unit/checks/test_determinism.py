"""What both adapters' `deterministic(seed)` rest on."""

from __future__ import annotations

import pytest

from ckptfmt.checks.determinism import WORKSPACE, check_seed, unhashed, workspace
from ckptfmt.errors import UsageError


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1", None])
def test_seeds_that_some_generator_refuses(seed: object) -> None:
    with pytest.raises(UsageError, match="from 0 to"):
        check_seed(seed)


def test_seeds_that_all_take() -> None:
    check_seed(0)
    check_seed(2**32 - 1)


@pytest.mark.parametrize(
    ("value", "told"), [(None, 1), ("random", 1), ("", 1), ("0", 0), ("17", 0)]
)
def test_random_hashes_are_told(value: str | None, told: int) -> None:
    variables = {} if value is None else {"PYTHONHASHSEED": value}

    assert len(list(unhashed(variables))) == told


@pytest.mark.parametrize(
    ("before", "started", "after", "told"),
    [
        (None, False, ":4096:8", 0),
        (None, True, ":4096:8", 1),
        (":0:0", True, ":4096:8", 1),
        (":16:8", True, ":16:8", 0),
    ],
)
def test_the_workspace_is_set_once(
    before: str | None, started: bool, after: str, told: int
) -> None:
    variables = {} if before is None else {WORKSPACE: before}

    assert len(list(workspace(variables, started=started))) == told
    assert variables == {WORKSPACE: after}
