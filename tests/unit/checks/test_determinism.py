"""What both adapters' `deterministic(seed)` rest on."""

from __future__ import annotations

import os

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
def test_random_hashes_are_told(
    value: str | None, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if value is not None:
        monkeypatch.setenv("PYTHONHASHSEED", value)

    assert len(list(unhashed())) == told


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
    before: str | None, started: bool, after: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, before or "")
    if before is None:
        monkeypatch.delenv(WORKSPACE)

    assert len(list(workspace(started=started))) == told
    assert os.environ[WORKSPACE] == after
