"""Run gcp-storage-emulator with `ifGenerationMatch=0`, which it ignores by itself.

Program: `python gcs_program.py PORT`. It serves one request at a time, so that looking
whether an object exists and storing it are one step. Objects are kept in memory.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import Conflict, NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

CREATE: set[str] = set()  # sessions of resumable uploads that must create their object
create_file, create_session = Storage.create_file, Storage.create_resumable_upload
insert, upload_partial = objects.insert, objects.upload_partial
conditional = False  # whether the request now served must create its object


def exists(storage: Storage, bucket: str, name: str) -> bool:
    """Return whether an object is there."""
    try:
        storage.get_file_obj(bucket, name)
    except NotFound:
        return False
    return True


def new_session(self: Storage, bucket: str, name: str, description: Any) -> str:
    """Begin a resumable upload; its condition is checked now and again at its end."""
    if conditional and exists(self, bucket, name):
        raise Conflict("conditionNotMet")
    session: str = create_session(self, bucket, name, description)
    if conditional:
        CREATE.add(session)
    return session


def new_file(
    self: Storage, bucket: str, name: str, content: bytes, *rest: Any, **named: Any
) -> None:
    """Store an object."""
    if conditional and exists(self, bucket, name):
        raise Conflict("conditionNotMet")
    create_file(self, bucket, name, content, *rest, **named)


def cancel(request: Any, response: Any, storage: Storage, **named: Any) -> None:
    """Give up a resumable upload; clients do so after one that failed."""
    storage.resumable.pop(request.query["upload_id"][0], None)
    response.status = HTTPStatus.NO_CONTENT


def watched(handler: Any) -> Any:
    """Return a handler of requests that notes whether the one it serves is conditional."""

    def handle(request: Any, response: Any, storage: Storage, *rest: Any, **named: Any) -> None:
        global conditional
        asked = request.query.get("ifGenerationMatch") == ["0"]
        conditional = asked or request.query.get("upload_id", [""])[0] in CREATE
        try:
            handler(request, response, storage, *rest, **named)
        finally:
            conditional = False

    return handle


def refuse(response: Any, error: Exception) -> None:
    """Answer as the service does when a condition does not hold."""
    response.status = HTTPStatus.PRECONDITION_FAILED
    response.json({"error": {"code": 412, "message": str(error)}})


Storage.create_file, Storage.create_resumable_upload = new_file, new_session
Storage._write_config_to_file = lambda self: None  # every list of objects, at every change
objects._handle_conflict = refuse
for _, methods in server.HANDLERS:
    for method, handler in list(methods.items()):
        if handler in (insert, upload_partial):
            methods[method] = watched(handler)
            sessions = methods
sessions["DELETE"] = cancel
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()
