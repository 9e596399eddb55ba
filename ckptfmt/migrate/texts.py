"""JSON from files that may be hostile: bounded, no duplicate keys, one error."""

from __future__ import annotations

import json
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Span

MAX_NBYTES: Final = 100 * 10**6  # also the limit of safetensors for its header


def parse(span: Span, *, limit: int = MAX_NBYTES) -> Any:
    """Return what a JSON file holds.

    Raises:
        FormatError: too long, not UTF-8, not JSON, nested too deep, or a key stands twice.
    """
    if span.nbytes > limit:
        raise FormatError("JSON is too long", file=span.name, expected=limit, found=span.nbytes)
    try:
        return json.loads(bytes(span.data).decode(), object_pairs_hook=_object)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("malformed JSON", file=span.name) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("a key stands twice in JSON")
    return found
