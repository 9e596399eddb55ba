"""The fixed header of a manifest, and its three parts (spec §6.1–6.2).

     0   8  magic 89 43 4B 50 54 0D 0A 1A
     8   2  format version
    10   1  kind: 1 checkpoint, 2 tombstone
    11   1  encoding of the body: 0 raw, 1 zstd
    12   4  zero
    16   8  summary, bytes
    24   8  body as stored, bytes
    32   8  body decoded, bytes
    40   8  header check: first 8 bytes of the SHA-256 of the header with these bytes zero
    48  16  zero
    64  32  SHA-256 of the summary
    96  32  SHA-256 of the body as stored

The identity of a checkpoint is the SHA-256 of these 128 bytes: they pin everything else, so
that a read of only the first few kilobytes can be verified.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import zstandard

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError, UsageError
from ckptfmt.format import upgrade, zstd
from ckptfmt.format.features import FORMAT_VERSION

MAGIC: Final = b"\x89CKPT\r\n\x1a"
HEADER_NBYTES: Final = 128
MAX_MANIFEST_NBYTES: Final = 48 * 2**20  # one PUT everywhere, below any multipart threshold
MAX_BODY_NBYTES: Final = 256 * 2**20  # decoded
# An encoded body decodes to at most so many times its length, and a little more. Digests do
# not compress, so that real ones stay below 10; without the limit a manifest of 20 KB could
# stand for 256 MiB of empty lists, which are 18 GB of objects.
MAX_BODY_RATIO: Final = 64
BODY_SLACK_NBYTES: Final = 2**20

CHECKPOINT: Final = 1
TOMBSTONE: Final = 2

_LAYOUT: Final = struct.Struct("<8sHBB4sQQQ8s16s32s32s")
_CHECK: Final = slice(40, 48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 128 bytes of a manifest, checked."""

    version: int
    kind: int
    body_encoding: int
    summary_nbytes: int
    body_nbytes: int  # as stored
    body_raw_nbytes: int
    summary_digest: bytes
    body_digest: bytes
    identity: str  # SHA-256 of the header, hexadecimal

    @property
    def nbytes(self) -> int:
        """Length of the whole file."""
        return HEADER_NBYTES + self.summary_nbytes + self.body_nbytes


def encode(kind: int, summary: bytes, body: bytes) -> bytes:
    """Return a whole manifest file.

    Raises:
        UsageError: it would exceed `MAX_MANIFEST_NBYTES`.
    """
    stored, encoding = body, 0
    if body:
        packed = zstandard.ZstdCompressor(level=1).compress(body)
        if len(packed) < len(body) <= _most(len(packed)):
            stored, encoding = packed, 1
    header = _LAYOUT.pack(
        MAGIC,
        FORMAT_VERSION,
        kind,
        encoding,
        bytes(4),
        len(summary),
        len(stored),
        len(body),
        bytes(8),
        bytes(16),
        hashlib.sha256(summary).digest(),
        hashlib.sha256(stored).digest(),
    )
    header = header[:40] + _header_check(header) + header[48:]
    nbytes = len(header) + len(summary) + len(stored)
    if nbytes > MAX_MANIFEST_NBYTES or len(body) > MAX_BODY_NBYTES:
        raise UsageError(
            "manifest too large: store fewer arrays or smaller metadata in one checkpoint",
            expected=MAX_MANIFEST_NBYTES,
            found=nbytes,
        )
    return header + summary + stored


def decode_header(data: bytes, **where: object) -> Header:
    """Check the first 128 bytes.

    Raises:
        FormatError: not a manifest, or a field is out of range.
        UnsupportedError: a newer major version.
        IntegrityError: fewer than 128 bytes.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FormatError("not a ckptfmt manifest", expected=MAGIC, found=data[:8], **where)
    if len(data) < HEADER_NBYTES:
        raise IntegrityError(
            "manifest is shorter than its header",
            expected=HEADER_NBYTES,
            found=len(data),
            **where,
        )
    head = data[:HEADER_NBYTES]
    _, version, kind, encoding, zero, summary, body, raw, check, zeros, *digests = (
        _LAYOUT.unpack(head)
    )
    if _header_check(head) != check:
        raise IntegrityError(
            "damaged manifest header",
            expected=_header_check(head).hex(),
            found=check.hex(),
            **where,
        )
    # From here on the header is what its writer meant: the unknown is newer, not damaged.
    if not upgrade.reads(version):
        raise UnsupportedError(
            f"manifest has format version {version}, this ckptfmt reads {FORMAT_VERSION}:"
            " upgrade ckptfmt",
            **where,
        )
    if kind not in (CHECKPOINT, TOMBSTONE) or encoding not in (0, 1) or any(zero + zeros):
        raise UnsupportedError(
            "manifest header uses values of a newer format: upgrade ckptfmt",
            kind=kind,
            encoding=encoding,
            **where,
        )
    if HEADER_NBYTES + summary + body > MAX_MANIFEST_NBYTES or raw > _most(body):
        raise FormatError(
            "manifest declares absurd lengths", found=(summary, body, raw), **where
        )
    if (encoding == 0 and raw != body) or (kind == TOMBSTONE and (body or encoding)):
        raise FormatError("body lengths contradict", found=(kind, encoding, body, raw), **where)
    return Header(
        version=version,
        kind=kind,
        body_encoding=encoding,
        summary_nbytes=summary,
        body_nbytes=body,
        body_raw_nbytes=raw,
        summary_digest=digests[0],
        body_digest=digests[1],
        identity=hashlib.sha256(head).hexdigest(),
    )


def _most(stored_nbytes: int) -> int:
    """Return how many bytes a body stored in so many may decode to."""
    return min(MAX_BODY_NBYTES, BODY_SLACK_NBYTES + MAX_BODY_RATIO * stored_nbytes)


def _header_check(header: bytes) -> bytes:
    """Return the header's own short digest: it tells damage from a newer format."""
    return hashlib.sha256(header[:40] + bytes(8) + header[48:]).digest()[:8]


def summary_of(header: Header, data: bytes, **where: object) -> bytes:
    """Return the verified summary from the first bytes of a manifest.

    Raises:
        IntegrityError: `data` ends inside the summary, or the summary is damaged.
    """
    summary = data[HEADER_NBYTES : HEADER_NBYTES + header.summary_nbytes]
    _check("summary", summary, header.summary_nbytes, header.summary_digest, where)
    return summary


def body_of(header: Header, data: bytes, **where: object) -> bytes:
    """Return the verified, decoded body from a whole manifest.

    Raises:
        IntegrityError: the file is truncated, extended or damaged.
        FormatError: the declared length of the body lies.
    """
    if len(data) != header.nbytes:
        raise IntegrityError(
            "manifest has another length than its header says",
            expected=header.nbytes,
            found=len(data),
            **where,
        )
    body = data[HEADER_NBYTES + header.summary_nbytes :]
    _check("body", body, header.body_nbytes, header.body_digest, where)
    if header.body_encoding == 0:
        return body
    return zstd.decompress(body, nbytes=header.body_raw_nbytes, **where)


def _check(
    part: str, data: bytes, nbytes: int, digest: bytes, where: dict[str, object]
) -> None:
    if len(data) != nbytes:
        raise IntegrityError(
            f"manifest ends inside its {part}", expected=nbytes, found=len(data), **where
        )
    found = hashlib.sha256(data).digest()
    if found != digest:
        raise IntegrityError(
            f"digest mismatch in the {part} of the manifest",
            expected=digest.hex(),
            found=found.hex(),
            **where,
        )
