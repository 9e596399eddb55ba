"""What is particular to a rehearsal: the storage does not notice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ckptfmt.backends import MemoryBackend, Upload
from ckptfmt.backends.rehearsal import Rehearsal
from ckptfmt.errors import ConflictError, NotFoundError


@pytest.fixture
def inner() -> MemoryBackend:
    backend = MemoryBackend(clock=lambda: 5.0)
    for key in ("a/1", "a/2", "a/3"):
        backend.create(key, key.encode())
    return backend


@pytest.fixture
def rehearsal(inner: MemoryBackend) -> Rehearsal:
    return Rehearsal(inner, now=7.0)


def test_no_change_reaches_the_storage(inner: MemoryBackend, rehearsal: Rehearsal) -> None:
    before = {key: (entry, inner.read(key)) for key, entry in inner.list("a").items()}

    rehearsal.delete("a/1")
    rehearsal.replace("a/2", b"other")
    rehearsal.create("a/4", b"new")
    rehearsal.write("a/5", [b"more", b"than one"], nbytes=12)

    assert {key: (e, inner.read(key)) for key, e in inner.list("a").items()} == before


def test_changes_show_with_the_time_that_was_given(
    inner: MemoryBackend, rehearsal: Rehearsal
) -> None:
    rehearsal.delete("a/1")
    rehearsal.replace("a/2", b"other")
    rehearsal.create("a/0", b"new")

    found = [(e.key, e.nbytes, e.modified) for e in rehearsal.list("a").values()]
    assert found == [("a/0", 3, 7.0), ("a/2", 5, 7.0), ("a/3", 3, 5.0)]
    assert rehearsal.read("a/2") == b"other"
    assert rehearsal.read("a/3") == b"a/3"
    with pytest.raises(NotFoundError):
        rehearsal.read("a/1")


def test_a_name_is_free_again_once_its_object_was_deleted(rehearsal: Rehearsal) -> None:
    with pytest.raises(ConflictError):
        rehearsal.create("a/1", b"new")
    with pytest.raises(ConflictError):
        rehearsal.write("a/1", [b"new"], nbytes=3)

    rehearsal.delete("a/1")
    rehearsal.create("a/1", b"new")

    assert rehearsal.read("a/1") == b"new"


def test_what_others_do_meanwhile_shows(inner: MemoryBackend, rehearsal: Rehearsal) -> None:
    rehearsal.delete("a/1")
    inner.create("a/9", b"theirs")
    inner.delete("a/2")

    assert list(rehearsal.list("a")) == ["a/3", "a/9"]
    assert rehearsal.read("a/9") == b"theirs"


class Parts:
    """Storage that keeps the parts of uploads, as far as a rehearsal asks for it."""

    url = "parts:"

    def uploads(self, prefix: str) -> Sequence[Upload]:
        return [Upload(key=f"{prefix}/{n}", token=str(n), began=1.0) for n in range(3)]

    def end(self, upload: Upload) -> None:
        pytest.fail("the storage was told to end an upload")


def test_uploads_are_ended_for_the_rehearsal_only(rehearsal: Rehearsal) -> None:
    told = Rehearsal(Parts(), now=7.0)  # type: ignore[arg-type]

    told.end(told.uploads("data")[1])

    assert [one.token for one in told.uploads("data")] == ["0", "2"]
    assert rehearsal.uploads("data") == ()
