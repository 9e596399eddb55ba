"""The file table of a manifest (spec §6.7): which data files its chunks lie in."""

from __future__ import annotations

import functools
from typing import Any

from ckptfmt.errors import FormatError
from ckptfmt.format import columns, datafile, layout
from ckptfmt.format.digest import Digest
from ckptfmt.format.rows import FileRow


def decode(f: dict[str, Any], algorithm: Digest, *, bundle: bool) -> list[FileRow]:
    """Parse and validate the file table of a manifest's body.

    Raises:
        FormatError: a column is missing, of the wrong length, or a value is out of range.
    """
    keys = columns.strings(f, "key", "$.files")
    if bundle:
        if keys not in ([], [""]):
            raise FormatError("a bundle has one file, itself", at="$.files.key", found=keys[:2])
    else:
        for key in keys:
            layout.check_data_key(key, "$.files.key")
    n, size = len(keys), algorithm.nbytes
    columns.distinct(keys, "$.files.key")
    column = functools.partial(columns.uints, f, at="$.files", count=n)
    nbytes = column("nbytes", below=2**62)
    heads = column("header_nbytes", below=datafile.MAX_HEADER_NBYTES + 1)
    numbers = column("number", below=layout.MAX_NUMBER + 1)
    data = columns.binary(f, "header_digest", "$.files", nbytes=n * size)
    digests = [data[i * size : (i + 1) * size] for i in range(n)]
    if bundle and (any(heads) or any(data)):
        raise FormatError("a bundle's own header has no row", at="$.files.header_nbytes")
    rows = [*map(FileRow, keys, nbytes, heads, digests, numbers)]
    if not bundle and any(row.area_nbytes < 0 for row in rows):
        raise FormatError("a file is shorter than its header", at="$.files.header_nbytes")
    return rows
