"""An artifact that cannot be read is an error that names it, before a byte is written."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import ckptfmt
from ckptfmt.errors import UsageError


@pytest.mark.parametrize("content", ["absent", ".", 5, "a\0b"])
def test_what_cannot_be_read_is_named(tmp_path: pathlib.Path, content: Any) -> None:
    with ckptfmt.open(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="artifact cannot be read") as caught:
            store.save({"step": 1}, artifacts={"notes.txt": content})

        assert caught.value.where["artifact"] == "notes.txt"
        assert list(store) == []
