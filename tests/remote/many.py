"""A store of many checkpoints, made quickly: the bytes of one, under other numbers."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import ckptfmt
from ckptfmt.format import layout


def commit_many(store: ckptfmt.Store, count: int) -> None:
    """Commit checkpoints 1 to `count`; the metric `loss` of number n is 1 / n."""
    manifest = store.save({"w": np.arange(3)}, metrics={"loss": 1.0}).manifest

    def commit(number: int) -> None:
        summary = dataclasses.replace(
            manifest.summary,
            number=number,
            id=f"{number:024x}",
            save=f"{number:024x}",
            metrics={"loss": 1.0 / number},
        )
        data = dataclasses.replace(manifest, summary=summary).encode()
        store.backend.create(layout.manifest_key(number), data)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(commit, range(2, count + 1)))
