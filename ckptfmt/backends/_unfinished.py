"""Multipart uploads of S3 that were begun and not ended, as the service lists them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Coroutine
from typing import Any


async def uploads(
    call: Callable[..., Coroutine[Any, Any, Any]],
    Bucket: str,
    Key: str,
) -> list[tuple[str, str, datetime.datetime]]:
    """Return path, id and time of each below the folder `Key`, over all pages."""
    found: list[tuple[str, str, datetime.datetime]] = []
    more: dict[str, str] = {}
    while True:
        page = await call(
            "list_multipart_uploads", Bucket=Bucket, Prefix=f"{Key}/" if Key else "", **more
        )
        found += [
            (f"{Bucket}/{one['Key']}", one["UploadId"], one["Initiated"])
            for one in page.get("Uploads", ())
        ]
        following = {
            name: page[f"Next{name}"]
            for name in ("KeyMarker", "UploadIdMarker")
            if page.get(f"Next{name}")
        }
        if not page.get("IsTruncated") or not following or following == more:
            return found
        more = following
