"""A bucket for measurements: enough of S3, kept on disk, in a process of its own.

It counts every request, answers late on demand, and fails on demand. No reference for what S3
does (real servers are): credentials are not looked at, and one bucket `b` exists.

    python -m tests.remote.bucket FOLDER      prints its port, ends with its standard input
"""

from __future__ import annotations

import contextlib
import datetime
import html
import http.client
import http.server
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from xml.sax.saxutils import escape

ROOT: Final = pathlib.Path(__file__).parents[2]
BUFFER_NBYTES: Final = 2**20
PAGE: Final = 1000  # keys of one listing, as S3 has it
XML: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'


@dataclass(frozen=True)
class Request:
    """One request as the bucket saw it; times are its own, in seconds."""

    method: str
    key: str
    query: str
    status: int
    nbytes: int  # of the body, whichever way it went
    begin: float
    end: float
    agent: str  # what the client calls itself


@dataclass
class Bucket:
    """A running bucket, as the tests hold it."""

    process: subprocess.Popen[str]
    port: int

    @property
    def options(self) -> dict[str, Any]:
        """`storage_options` for s3fs."""
        return {
            "key": "k",
            "secret": "s",
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def ask(self, what: str, **query: object) -> Any:
        """Send a word to the server itself: log, set, parts."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"/-/{what}?{urllib.parse.urlencode(query)}")
            return json.loads(connection.getresponse().read())

    def log(self) -> list[Request]:
        """Return the requests since the last call."""
        return [Request(*row) for row in self.ask("log")]


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Bucket]:
    """Start a bucket below `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.remote.bucket", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Bucket(process, int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait()


def rounds(requests: list[Request]) -> int:
    """Return the length of the longest chain of requests that waited for one another."""
    depth: list[tuple[float, int]] = []
    for request in sorted(requests, key=lambda r: r.end):
        before = max((d for end, d in depth if end <= request.begin), default=0)
        depth.append((request.end, before + 1))
    return max((d for _, d in depth), default=0)


# --- the server --------------------------------------------------------------------------


@dataclass
class Stored:
    """One object: files that make it up, in order."""

    parts: list[tuple[pathlib.Path, int]]
    modified: float

    @property
    def nbytes(self) -> int:
        return sum(n for _, n in self.parts)


@dataclass
class State:
    """What the threads of the server share."""

    folder: pathlib.Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, dict[int, tuple[pathlib.Path, int]]] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)
    log: list[list[Any]] = field(default_factory=list)
    delay: float = 0.0
    fail: dict[str, Any] = field(default_factory=dict)  # match, status, times


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    def handle_one_request(self) -> None:
        self.moved = 0
        self.status = 0
        super().handle_one_request()

    def log_message(self, *arguments: object) -> None:
        pass

    def _any(self) -> None:
        begin = time.monotonic()
        state, url = self.state, urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path).lstrip("/")
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if path.startswith("-/"):
            self._own(path[2:], query)
            return
        key = path.partition("/")[2]
        time.sleep(state.delay)
        if not self._failing(f"{self.command} {self.path}"):
            self._route(key, query)
        row = [
            self.command, key, url.query, self.status, self.moved, begin, time.monotonic(),
            self.headers.get("User-Agent", ""),
        ]  # fmt: skip
        with state.lock:
            state.log.append(row)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _own(self, what: str, query: dict[str, str]) -> None:
        state, answer = self.state, []
        with state.lock:
            match what:
                case "log":
                    answer, state.log = state.log, []
                case "parts":
                    answer = [len(parts) for parts in state.uploads.values()]
                case "set":
                    state.delay = float(query.get("delay", 0))
                    state.fail = {**query, "times": int(query.get("times", 0))}
        self._answer(200, json.dumps(answer).encode())

    def _failing(self, line: str) -> bool:
        state = self.state
        with state.lock:
            if state.fail.get("times", 0) < 1 or state.fail["match"] not in line:
                return False
            state.fail["times"] -= 1
        self._store(pathlib.Path(os.devnull))
        status = int(state.fail["status"])
        if status:
            self._error(status, "SlowDown")
        else:  # the connection breaks
            self.close_connection = True
            self.connection.close()
        return True

    def _route(self, key: str, query: dict[str, str]) -> None:
        match self.command:
            case "GET" | "HEAD" if key:
                self._get(key)
            case "GET" | "HEAD":
                self._list(query)
            case "PUT":
                self._put(key, query)
            case "POST":
                self._post(key, query)
            case _:
                self._delete(key, query)

    # --- answers

    def _answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.status = status
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.moved += len(body)

    def _error(self, status: int, code: str) -> None:
        body = f"{XML}<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, b"" if self.command == "HEAD" else body.encode())

    def _get(self, key: str) -> None:
        found = self.state.objects.get(key)
        if found is None:
            self._error(404, "NoSuchKey")
            return
        begin, end, headers = 0, found.nbytes, {}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1 if last else end)
            if begin >= end:
                self._error(416, "InvalidRange")
                return
            headers["Content_Range"] = f"bytes {begin}-{end - 1}/{found.nbytes}"
        date = datetime.datetime.fromtimestamp(found.modified, datetime.UTC)
        self._answer(
            206 if wanted else 200,
            Content_Length=end - begin,
            Last_Modified=date.strftime("%a, %d %b %Y %H:%M:%S GMT"),
            ETag='"e"',
            **headers,
        )
        if self.command == "GET":
            self._send(found, begin, end)
            self.moved += end - begin

    def _send(self, found: Stored, begin: int, end: int) -> None:
        at = 0
        for file, nbytes in found.parts:
            low, high = max(begin - at, 0), min(end - at, nbytes)
            if low < high:
                with file.open("rb") as source:
                    while low < high:
                        low += os.sendfile(
                            self.connection.fileno(), source.fileno(), low, high - low
                        )
            at += nbytes

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", "")
        with self.state.lock:
            keys = sorted(k for k in self.state.objects if k.startswith(prefix) and k > after)
        folders: dict[str, None] = {}
        last = ""
        rows: list[str] = []
        more = ""
        for key in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders[prefix + head + delimiter] = None
                continue
            if len(rows) == int(query.get("max-keys", PAGE)):
                more = last
                break
            last = key
            stored = self.state.objects[key]
            date = datetime.datetime.fromtimestamp(stored.modified, datetime.UTC)
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{stored.nbytes}</Size>"
                f"<LastModified>{date:%Y-%m-%dT%H:%M:%S.%f}Z</LastModified>"
                "<ETag>e</ETag><StorageClass>STANDARD</StorageClass></Contents>"
            )
        rows += [
            f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders
        ]
        token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        body = (
            f"{XML}<ListBucketResult><Name>b</Name><KeyCount>{len(rows)}</KeyCount>"
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{token}{''.join(rows)}"
            "</ListBucketResult>"
        )
        self._answer(200, body.encode())

    # --- changes

    def _store(self, path: pathlib.Path) -> int:
        left = nbytes = int(self.headers.get("Content-Length", 0))
        buffer = memoryview(bytearray(min(BUFFER_NBYTES, max(left, 1))))
        with path.open("wb") as file:
            while left:
                n = self.rfile.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
                if not n:
                    raise ConnectionError
                file.write(buffer[:n])
                left -= n
        self.moved += nbytes
        return nbytes

    def _put(self, key: str, query: dict[str, str]) -> None:
        if "x-amz-decoded-content-length" in self.headers:
            self._error(501, "NotImplemented")
            return
        state = self.state
        with state.lock:
            path = state.folder / str(next(state.names))
        if source := self.headers.get("x-amz-copy-source"):
            name = urllib.parse.unquote(source).lstrip("/").partition("/")[2]
            with path.open("wb") as file, state.lock:
                for part, _ in state.objects[name].parts:
                    file.write(part.read_bytes())
                state.objects[key] = Stored([(path, file.tell())], time.time())
            body = f"{XML}<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
            self._answer(200, body.encode())
            return
        nbytes = self._store(path)
        if "uploadId" in query:
            with state.lock:
                upload = state.uploads.get(query["uploadId"])
                if upload is not None:
                    upload[int(query["partNumber"])] = path, nbytes
            if upload is None:
                path.unlink()
                self._error(404, "NoSuchUpload")
                return
        else:
            with state.lock:
                if self.headers.get("If-None-Match") == "*" and key in state.objects:
                    taken = True
                else:
                    state.objects[key] = Stored([(path, nbytes)], time.time())
                    taken = False
            if taken:
                path.unlink()
                self._error(412, "PreconditionFailed")
                return
        self._answer(200, ETag='"e"')

    def _post(self, key: str, query: dict[str, str]) -> None:
        state = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "delete" in query:  # several at once
            with state.lock:
                for each in re.findall(rb"<Key>(.*?)</Key>", body):
                    state.objects.pop(html.unescape(each.decode()), None)
            self._answer(200, f"{XML}<DeleteResult></DeleteResult>".encode())
            return
        if "uploads" in query:
            with state.lock:
                name = f"upload-{next(state.names)}"
                state.uploads[name] = {}
            self._answer(
                200,
                f"{XML}<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{escape(key)}</Key>"
                f"<UploadId>{name}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
            return
        with state.lock:
            parts = state.uploads.pop(query["uploadId"], None)
            if parts:
                state.objects[key] = Stored([p for _, p in sorted(parts.items())], time.time())
        if not parts:
            self._error(404, "NoSuchUpload")
            return
        self._answer(
            200,
            f"{XML}<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>e</ETag>"
            "</CompleteMultipartUploadResult>".encode(),
        )

    def _delete(self, key: str, query: dict[str, str]) -> None:
        state = self.state
        with state.lock:
            if "uploadId" in query:
                gone = list(state.uploads.pop(query["uploadId"], {}).values())
            else:
                stored = state.objects.pop(key, None)
                gone = stored.parts if stored else []
        for path, _ in gone:
            path.unlink()
        self._answer(204)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *arguments: object) -> None:
        """A client that went away is no failure of the server."""


def main() -> None:
    Handler.state = State(pathlib.Path(sys.argv[1]))
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
