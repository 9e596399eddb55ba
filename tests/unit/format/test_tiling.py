"""Boxes that cover an array exactly once, and all others; checked against counting."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from ckptfmt.errors import FormatError
from ckptfmt.format.tiling import check_tiling

Box = tuple[tuple[int, ...], tuple[int, ...]]  # start, end


def check(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    start = np.array([box[0] for box in boxes], np.int64)
    extent = np.array([box[1] for box in boxes], np.int64) - start
    try:
        check_tiling(start, extent, shape, path="model/w")
    except FormatError:
        return False
    return True


def counts_once(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    covered = np.zeros(shape, int)
    for start, end in boxes:
        covered[tuple(slice(b, e) for b, e in zip(start, end, strict=True))] += 1
    return bool((covered == 1).all())


def cut_at_random(box: Box, rng: random.Random) -> list[Box]:
    start, end = box
    axes = [k for k in range(len(start)) if end[k] - start[k] > 1]
    if not axes or rng.random() < 0.3:
        return [box]
    axis = rng.choice(axes)
    at = rng.randint(start[axis] + 1, end[axis] - 1)
    low, high = list(end), list(start)
    low[axis] = high[axis] = at
    return cut_at_random((start, tuple(low)), rng) + cut_at_random((tuple(high), end), rng)


def changed(boxes: list[Box], shape: tuple[int, ...], rng: random.Random) -> list[Box]:
    """Move, grow, repeat or leave out one box."""
    n, axis = rng.randrange(len(boxes)), rng.randrange(len(shape))
    start, end = map(list, boxes[n])
    length = end[axis] - start[axis]
    match rng.choice(["move", "resize", "repeat", "leave out"]):
        case "move":
            start[axis] = rng.randint(0, shape[axis] - length)
            end[axis] = start[axis] + length
        case "resize":
            end[axis] = rng.randint(start[axis] + 1, shape[axis])
        case "repeat":
            return [*boxes, boxes[n]]
        case _:
            return boxes[:n] + boxes[n + 1 :] or boxes
    return [*boxes[:n], (tuple(start), tuple(end)), *boxes[n + 1 :]]


def test_the_check_agrees_with_counting(seed: int) -> None:
    rng = random.Random(seed)
    verdicts = []
    for _ in range(3000):
        shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 4)))
        boxes = cut_at_random(((0,) * len(shape), shape), rng)
        rng.shuffle(boxes)
        for _ in range(rng.choice([0, 1, 2])):
            boxes = changed(boxes, shape, rng)

        verdicts.append(check(boxes, shape))
        assert verdicts[-1] == counts_once(boxes, shape), (boxes, shape)
    assert 1000 < sum(verdicts) < 2500


def test_boxes_that_interlock_are_accepted() -> None:
    """No straight line divides them."""
    pinwheel = [
        ((0, 0), (1, 2)),
        ((0, 2), (2, 3)),
        ((2, 1), (3, 3)),
        ((1, 0), (3, 1)),
        ((1, 1), (2, 2)),
    ]

    assert check(pinwheel, (3, 3))
    assert not check([*pinwheel[:-1], ((0, 0), (1, 1))], (3, 3))  # the same volume


@pytest.mark.parametrize(
    ("box", "shape"),
    [(((0,), (0,)), (3,)), (((2,), (4,)), (3,)), (((3,), (4,)), (3,)), (((0,), (9,)), (3,))],
)
def test_a_box_outside_the_array_is_named(box: Box, shape: tuple[int, ...]) -> None:
    start = np.array([box[0]], np.int64)
    extent = np.array([box[1]], np.int64) - start

    with pytest.raises(FormatError, match="empty or leaves its array") as caught:
        check_tiling(start, extent, shape, path="w")

    assert caught.value.where["start"] == list(box[0])


def test_many_boxes_beside_each_other_take_no_quadratic_time() -> None:
    """Comparing them in pairs would take a quarter of an hour."""
    boxes = 200_000
    start = np.zeros((boxes, 2), np.int64)
    start[:, 1] = np.arange(boxes)
    extent = np.ones((boxes, 2), np.int64)

    began = time.process_time()
    check_tiling(start, extent, (1, boxes), path="w")
    assert time.process_time() - began < 5

    start[7, 1] = 8
    with pytest.raises(FormatError):
        check_tiling(start, extent, (1, boxes), path="w")
