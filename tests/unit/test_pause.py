"""The collector of Python while a listing is read."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ckptfmt.pause import SELDOM, gc_seldom


@pytest.fixture(autouse=True)
def _threshold() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 11, 12)
    yield
    gc.set_threshold(*before)


def test_the_collector_looks_seldom_and_then_as_before() -> None:
    with gc_seldom():
        assert gc.isenabled()
        assert gc.get_threshold() == (SELDOM, 11, 12)

    assert gc.get_threshold() == (700, 11, 12)


def test_who_ends_last_sets_it_back() -> None:
    """As of two threads that list at once, in any order."""
    first, second = gc_seldom(), gc_seldom()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] == SELDOM
    second.__exit__(None, None, None)

    assert gc.get_threshold()[0] == 700


@pytest.mark.parametrize("own", [0, SELDOM + 1])
def test_a_collector_that_looks_never_or_less_often_stays_so(own: int) -> None:
    gc.set_threshold(own, 11, 12)
    with gc_seldom():
        assert gc.get_threshold()[0] == own

    assert gc.get_threshold()[0] == own


def test_what_others_set_meanwhile_stays() -> None:
    with gc_seldom():
        gc.set_threshold(5, 11, 12)
        with gc_seldom():
            assert gc.get_threshold()[0] == 5

    assert gc.get_threshold()[0] == 5
