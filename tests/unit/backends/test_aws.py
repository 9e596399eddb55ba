"""What is made cheaper about botocore gives what botocore gives."""

from __future__ import annotations

import datetime
import email.utils
from typing import Any

import pytest

from ckptfmt.backends._aws import instant
from ckptfmt.backends.fsspec import FsspecBackend

OPTIONS: dict[str, Any] = {"key": "k", "secret": "s", "endpoint_url": "http://localhost:9"}


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 22 Nov 2026 03:17:25 GMT",
        "Sunday, 22-Nov-26 03:17:25 GMT",
        "Sun, 22 Nov 2026 04:17:25 +0100",
        "Sun, 22 Nov 2026 03:17:25 -0000",
        "2026-11-22T03:17:25Z",
        "2026-11-22T03:17:25.000Z",
        "2026-11-22T03:17:25+00:00",
        "20261122T031725Z",
        "1795317445",
        1795317445,
    ],
)
def test_times_are_those_of_botocore(text: object) -> None:
    utils = pytest.importorskip("botocore.utils", reason="botocore is not installed")

    found = instant(text)

    assert found == utils.parse_timestamp(text)
    assert found == datetime.datetime(2026, 11, 22, 3, 17, 25, tzinfo=datetime.UTC)


@pytest.mark.parametrize("text", ["Z", " GMT", "noon", "2026-13-22T03:17:25Z"])
def test_what_is_no_time_is_refused_as_by_botocore(text: str) -> None:
    pytest.importorskip("botocore.utils", reason="botocore is not installed")

    with pytest.raises(ValueError, match="timestamp"):
        instant(text)


def test_common_times_are_read_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("botocore.utils", reason="botocore is not installed")
    monkeypatch.setattr(utils, "parse_timestamp", pytest.fail)

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    for text in (email.utils.format_datetime(now, usegmt=True), f"{now:%Y-%m-%dT%H:%M:%S}Z"):
        assert instant(text) == now


def test_descriptions_of_the_service_are_parsed_once() -> None:
    loaders = pytest.importorskip("botocore.loaders", reason="botocore is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    first, second = (_connected(OPTIONS) for _ in range(2))

    assert first.session is not second.session
    loader = first.session.get_component("data_loader")
    assert isinstance(loader, loaders.Loader)
    assert loader is second.session.get_component("data_loader")


def test_a_session_of_the_user_stays_as_it_is() -> None:
    session = pytest.importorskip("aiobotocore.session").AioSession()
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    parsers = session.get_component("response_parser_factory")

    assert _connected({**OPTIONS, "session": session}).session is session

    assert parsers._defaults == {}


def _connected(options: dict[str, Any]) -> Any:
    fs: Any = FsspecBackend("s3://b/x", storage_options=options)._resolved[1].fs
    fs.connect()
    return fs
