"""Addresses: the first `@` behind which a selector stands parts the URL from it."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ckptfmt
from ckptfmt.api import split_address
from ckptfmt.errors import UsageError


@pytest.mark.parametrize(
    ("address", "url", "which"),
    [
        ("runs/a", "runs/a", None),
        ("runs/a@12", "runs/a", "12"),
        ("runs/a@latest", "runs/a", "latest"),
        ("runs/a@best:acc@5:max", "runs/a", "best:acc@5:max"),
        ("runs/a@tag:me@home/x", "runs/a", "tag:me@home/x"),
        ("sftp://user@host", "sftp://user@host", None),
        ("sftp://user@host/a@7", "sftp://user@host/a", "7"),
        ("a@b/c@latest", "a@b/c", "latest"),
        ("@12", "@12", None),
        ("x@lastest", "x@lastest", None),
        ("runs/a/manifests/0000000012-000.ckpt", "runs/a", "12"),
        ("s3://b/a/manifests/0000000012-003.ckpt", "s3://b/a", "12"),
        ("manifests/0000000012-000.ckpt", ".", "12"),
        ("runs/a/0000000012-000.ckpt", "runs/a/0000000012-000.ckpt", None),
        ("runs/manifests/12.ckpt", "runs/manifests/12.ckpt", None),
    ],
)
def test_an_address_is_split(address: str, url: str, which: str | None) -> None:
    assert split_address(address) == (url, which)


def test_a_manifest_can_be_opened(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path / "s")
    for n in range(2):
        store.save({"model": {"w": np.full(3, n)}})

    found = ckptfmt.open_checkpoint(tmp_path / "s" / "manifests" / "0000000001-000.ckpt")

    assert found.number == 1
    assert found.load()["model"]["w"].tolist() == [0, 0, 0]


def test_a_nul_in_a_path_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        ckptfmt.open_checkpoint("a\0.safetensors")


def test_files_tell_their_progress(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path / "s")
    saved = store.save({"model": {"w": np.zeros(3_000_000)}})
    seen: list[tuple[str, int, int]] = []

    ckptfmt.pack(saved, tmp_path / "p.safetensors", progress=lambda *a: seen.append(a))
    packed = list(seen)
    seen.clear()
    ckptfmt.export(saved, tmp_path / "e.safetensors", progress=lambda *a: seen.append(a))
    exported = list(seen)
    seen.clear()
    ckptfmt.unpack(tmp_path / "p.safetensors", store, progress=lambda *a: seen.append(a))

    for told in (packed, exported, seen):
        assert told[-1][1] == told[-1][2] >= 24_000_000
        assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
