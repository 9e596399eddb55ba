"""The S3 client through real HTTP: requests counted, failures injected, nothing left over."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import zlib

import pytest

from ckptfmt.backends._upload import Content, Policy, cut
from ckptfmt.backends.fsspec import FsspecBackend
from ckptfmt.errors import BackendError, ConflictError, IntegrityError
from tests.remote.bucket import Bucket

NUMBERS = itertools.count()
QUICK = Policy(part_nbytes=2**16, tries=3, pause=lambda attempt: 0.01)
DATA = os.urandom(10 * 2**16 + 5)


@pytest.fixture
def backend(bucket: Bucket) -> FsspecBackend:
    url = f"s3://b/s3-{next(NUMBERS)}"
    return FsspecBackend(url, storage_options=bucket.options, policy=QUICK)


@pytest.mark.parametrize(("given", "name"), [({}, "ckptfmt"), ({"user_agent": "me"}, "me")])
def test_requests_say_who_asks(bucket: Bucket, given: dict[str, str], name: str) -> None:
    """In one word that need not be put together for each request; the user's word counts."""
    options = {**bucket.options, "config_kwargs": {"max_pool_connections": 3, **given}}
    FsspecBackend(f"s3://b/{name}", storage_options=options).create("marker", b"1")

    assert {r.agent.partition(" botocore/")[0] for r in bucket.log()} == {name}


def test_a_large_object_goes_up_in_parts(bucket: Bucket, backend: FsspecBackend) -> None:
    backend.write("data/1", [DATA[:7], DATA[7:]], nbytes=len(DATA))

    parts = [r for r in bucket.log() if r.method == "PUT"]
    assert sorted(r.nbytes for r in parts) == [5, *[2**16] * 10]
    assert backend.read("data/1") == DATA
    with pytest.raises(ConflictError):
        backend.write("data/1", [DATA], nbytes=len(DATA))
    assert bucket.ask("parts") == []


@pytest.mark.parametrize("status", [503, 0], ids=["busy", "connection reset"])
@pytest.mark.parametrize(
    "match", ["partNumber=3", "POST", "GET", "HEAD"], ids=["part", "begin", "read", "size"]
)
def test_a_passing_failure_is_not_seen(
    bucket: Bucket, backend: FsspecBackend, match: str, status: int
) -> None:
    bucket.ask("set", match=match, status=status, times=2)

    backend.write("data/1", [DATA], nbytes=len(DATA))
    found = bytearray(len(DATA))
    backend.read_into("data/1", 0, memoryview(found))

    assert found == DATA
    assert bucket.ask("parts") == []


def test_parts_with_the_checksums_of_tls_are_whole() -> None:
    """Over TLS the client puts a checksum behind each part: it reads, we do not iterate."""
    checksums = pytest.importorskip("aiobotocore.httpchecksum")
    crc32 = pytest.importorskip("botocore.httpchecksum").Crc32Checksum
    parts = list(cut([memoryview(DATA)[:7], memoryview(DATA)[7:]], 2**18))

    async def encoded(part: Content) -> bytes:
        body = checksums.AioAwsChunkedWrapper(
            part, checksum_cls=crc32, checksum_name="x-amz-checksum-crc32", chunk_size=2**16
        )
        return b"".join([chunk async for chunk in body])

    found = [asyncio.run(encoded(part)) for part in parts]

    assert b"".join(map(_decoded, found)) == DATA
    sums = [base64.b64encode(zlib.crc32(bytes(p)).to_bytes(4, "big")) for p in parts]
    assert all(b"crc32:" + s in f for s, f in zip(sums, found, strict=True))


def _decoded(body: bytes) -> bytes:
    data = b""
    while not body.startswith(b"0\r\n"):
        length, _, body = body.partition(b"\r\n")
        data += body[: int(length, 16)]
        body = body[int(length, 16) + 2 :]
    return data


def test_a_part_that_never_arrives_leaves_nothing(
    bucket: Bucket, backend: FsspecBackend
) -> None:
    bucket.ask("set", match="partNumber=3", status=403, times=10**6)

    with pytest.raises(BackendError) as caught:
        backend.write("data/1", [DATA], nbytes=len(DATA))

    assert caught.value.where["key"] == "data/1"
    bucket.ask("set")
    assert backend.list("data") == {}
    assert bucket.ask("parts") == []


def test_a_read_is_one_request(bucket: Bucket, backend: FsspecBackend) -> None:
    backend.create("a/1", b"0123456789")
    bucket.log()

    assert backend.read("a/1") == b"0123456789"
    assert backend.read("a/1", 3, 4) == b"3456"

    assert [(r.method, r.nbytes) for r in bucket.log()] == [("GET", 10), ("GET", 4)]


@pytest.mark.parametrize(("offset", "nbytes"), [(8, 3), (10, 1), (0, 11)])
def test_a_range_beyond_the_end_names_everything(
    backend: FsspecBackend, offset: int, nbytes: int
) -> None:
    backend.create("a/1", b"0123456789")

    with pytest.raises(IntegrityError) as caught:
        backend.read_into("a/1", offset, memoryview(bytearray(nbytes)))

    where = caught.value.where
    assert where == {"key": "a/1", "offset": offset, "expected": offset + nbytes, "found": 10}
