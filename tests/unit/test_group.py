"""Single: the group of one."""

from __future__ import annotations

import pytest

from ckptfmt.group import Group, Single

GROUP: Group = Single()  # type-checked: Single is a Group


def test_single_is_rank_zero_of_one() -> None:
    assert (GROUP.rank, GROUP.size) == (0, 1)


def test_gather_returns_the_only_value() -> None:
    value = {"rows": [1]}

    gathered = GROUP.gather(value, 0.0)

    assert gathered == [value]
    assert gathered is not None
    assert gathered[0] is value


def test_broadcast_returns_its_value() -> None:
    value = ["plan"]

    assert GROUP.broadcast(value, timeout_seconds=0.0) is value


def test_barrier_does_not_wait() -> None:
    GROUP.barrier(timeout_seconds=0.0)
    GROUP.barrier()


def test_single_has_no_state() -> None:
    with pytest.raises(AttributeError):
        GROUP.rank = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        GROUP.state = 1  # type: ignore[attr-defined]
