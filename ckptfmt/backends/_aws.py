"""What botocore does at length for each client and each request, done once or in a few steps.

By what it offers for that: the components of a session (`data_loader`, the defaults of
`response_parser_factory`). A session that the user gave stays as it is.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import importlib
from typing import Any, Final

# Loaders by the folders they look in; each keeps the descriptions of services that it parsed.
_LOADERS: Final[dict[str | None, Any]] = {}


def lighten(fs: Any) -> None:
    """Give a file system of s3fs, not yet connected, a session that costs less.

    Without it each client parses the descriptions of its service anew: most of what making
    one costs. And each answer has a time, of which botocore tries all ways to write one: a
    sixth of what a small request costs.
    """
    if getattr(fs, "session", fs) is not None:
        return
    session = importlib.import_module("aiobotocore.session").AioSession(**fs.kwargs)
    session.lazy_register_component("data_loader", functools.partial(_loader, session))
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=instant)
    fs.session = session


def _loader(session: Any) -> Any:
    folders = session.get_config_variable("data_path")
    if folders not in _LOADERS:
        _LOADERS[folders] = importlib.import_module("botocore.loaders").create_loader(folders)
    return _LOADERS[folders]


def instant(text: object) -> datetime.datetime:
    """Return a time as S3 writes it in headers and listings; the rest is left to botocore."""
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            if text.endswith("Z"):
                return datetime.datetime.fromisoformat(text)
            if text.endswith(" GMT"):
                return email.utils.parsedate_to_datetime(text)
    found: datetime.datetime = importlib.import_module("botocore.utils").parse_timestamp(text)
    return found
