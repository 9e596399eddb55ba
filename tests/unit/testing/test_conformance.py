"""The conformance suite catches broken backends, and each of its tests is needed for one.

Every class below breaks one sentence of the contract; the suite runs over all of them in one
process, and its failures are counted.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from ckptfmt.testing import BackendConformance

HEAD = """
    import math, os, threading, time
    import pytest
    from ckptfmt.backends import Entry, MemoryBackend
    from ckptfmt.backends._keys import flat
    from ckptfmt.errors import *
    from ckptfmt.testing import BackendConformance

    class Wrapped:
        def __init__(self):
            self.inner = MemoryBackend()
            self.changed = 0
        def __getattr__(self, name):
            return getattr(self.inner, name)
        def put(self, key, data):
            self.inner._objects[key] = data, 0.0
"""

BROKEN = {
    "NoKeyGrammar": """
        def create(self, key, data, *, durable=True):
            self.put(key, bytes(data))
        replace = create
        def write(self, key, blocks, *, nbytes, durable=True):
            self.put(key, b"".join(blocks))
        def read(self, key, offset=0, nbytes=None):
            return self.inner._objects.get(key, (b"", 0))[0]
        def read_into(self, key, offset, target): pass
        def map(self, key, offset, nbytes): return memoryview(b"")
    """,
    "NoKeyGrammarInDeleteAndList": """
        def delete(self, key): self.inner._objects.pop(key, None)
        def list(self, prefix): return {}
    """,
    "RefusesLongKeys": """
        def create(self, key, data, *, durable=True):
            if len(key) > 100 or "." in key: raise UsageError("x")
            self.inner.create(key, data)
    """,
    "FoldsCase": """
        def create(self, key, data, *, durable=True): self.inner.create(key.lower(), data)
        def read(self, key, offset=0, nbytes=None):
            return self.inner.read(key.lower(), offset, nbytes)
    """,
    "HasNoUrl": "url = ''",
    "ForgetsCapabilities": """
        @property
        def capabilities(self): return len(self.inner._objects)
    """,
    "RefusesViews": """
        def create(self, key, data, *, durable=True):
            if isinstance(data, memoryview): raise TypeError
            self.inner.create(key, data)
        def replace(self, key, data, *, durable=True):
            if isinstance(data, memoryview): raise TypeError
            self.inner.replace(key, data)
        def write(self, key, blocks, *, nbytes, durable=True):
            blocks = list(blocks)
            if any(isinstance(block, memoryview) for block in blocks): raise TypeError
            self.inner.write(key, blocks, nbytes=nbytes)
    """,
    "RefusesNothing": """
        def create(self, key, data, *, durable=True):
            if not data: raise BackendError("x")
            self.inner.create(key, data)
        def write(self, key, blocks, *, nbytes, durable=True):
            if not nbytes: raise BackendError("x")
            self.inner.write(key, blocks, nbytes=nbytes)
    """,
    "CreateOverwrites": """
        def create(self, key, data, *, durable=True): self.inner.replace(key, data)
    """,
    "CreateKeepsTheBuffer": """
        def create(self, key, data, *, durable=True): self.put(key, data)
    """,
    "CreateRaces": """
        def create(self, key, data, *, durable=True):
            if key in self.inner._objects: raise ConflictError("x")
            time.sleep(0.001)
            self.inner.replace(key, data)
    """,
    "CreateIsSeenInPart": """
        def create(self, key, data, *, durable=True):
            self.inner.create(key, data[:len(data) // 2])
            time.sleep(0.001)
            self.inner.replace(key, data)
    """,
    "ReplaceNeedsAnOldObject": """
        def replace(self, key, data, *, durable=True):
            self.inner.read(key)
            self.inner.replace(key, data)
    """,
    "ReplaceIsSeenInPart": """
        def replace(self, key, data, *, durable=True):
            self.inner.replace(key, data[:len(data) // 2])
            time.sleep(0.001)
            self.inner.replace(key, data)
    """,
    "ReplaceLeavesOldBytes": """
        def replace(self, key, data, *, durable=True):
            old = self.inner.read(key) if key in self.inner._objects else b""
            self.inner.replace(key, bytes(flat(data)) + old[len(flat(data)):])
    """,
    "WriteTakesFewBlocks": """
        def write(self, key, blocks, *, nbytes, durable=True):
            data = b"".join(list(map(bytes, blocks))[:1024])
            self.inner.write(key, [data], nbytes=len(data))
    """,
    "WriteTakesSmallBlocks": """
        def write(self, key, blocks, *, nbytes, durable=True):
            data = b"".join(bytes(flat(b))[:8 << 20] for b in blocks)
            self.inner.write(key, [data], nbytes=len(data))
    """,
    "WriteIgnoresTheLength": """
        def write(self, key, blocks, *, nbytes, durable=True):
            data = b"".join(bytes(flat(b)) for b in blocks)
            self.inner.write(key, [data], nbytes=len(data))
    """,
    "WriteKeepsAPart": """
        def write(self, key, blocks, *, nbytes, durable=True):
            self.inner.create(key, b"")
            data = b""
            for block in blocks:
                data += flat(block)
                self.put(key, data)
    """,
    "WriteTranslatesErrors": """
        def write(self, key, blocks, *, nbytes, durable=True):
            try:
                self.inner.write(key, blocks, nbytes=nbytes)
            except (Exception) as error:
                if isinstance(error, CheckpointError): raise
                raise BackendError("x") from error
    """,
    "WriteOverwrites": """
        def write(self, key, blocks, *, nbytes, durable=True):
            self.inner.delete(key)
            self.inner.write(key, blocks, nbytes=nbytes)
    """,
    "WriteUsesAThread": """
        def write(self, key, blocks, *, nbytes, durable=True):
            done = []
            t = threading.Thread(target=lambda: done.extend(blocks)); t.start(); t.join()
            self.inner.write(key, done, nbytes=nbytes)
    """,
    "ReadsAreShort": """
        def read(self, key, offset=0, nbytes=None):
            data = self.inner.read(key)
            return data[offset:] if nbytes is None else data[offset : offset + nbytes]
        def read_into(self, key, offset, target):
            data = self.read(key, offset, len(target)); target[: len(data)] = data
        def map(self, key, offset, nbytes): return memoryview(self.read(key, offset, nbytes))
    """,
    "ReadsGoWrong": """
        def read(self, key, offset=0, nbytes=None):
            return self.inner.read(key, 0 if nbytes is None else offset, nbytes)[::-1]
        def read_into(self, key, offset, target):
            target[:] = self.inner.read(key, offset, len(flat(target)))[::-1]
        def map(self, key, offset, nbytes): return memoryview(bytearray(nbytes))
    """,
    "MapIsTheObjectItself": """
        def create(self, key, data, *, durable=True):
            self.inner.create(key, data)
            self.put(key, bytearray(data))
        def replace(self, key, data, *, durable=True): self.inner._objects[key][0][:] = data
        def delete(self, key):
            data = self.inner._objects.pop(key, None)
            if data: data[0][:] = bytes(len(data[0]))
    """,
    "MissingIsEmpty": """
        def read(self, key, offset=0, nbytes=None):
            return self.inner.read(key, offset, nbytes) if key in self.inner._objects else b""
        def map(self, key, offset, nbytes):
            return memoryview(self.read(key, offset, nbytes))
    """,
    "ListsDeep": """
        def list(self, prefix):
            return {k: Entry(key=k, nbytes=len(d), modified=t)
                    for k, (d, t) in self.inner._objects.items() if k.startswith(prefix)}
    """,
    "ListsOnePage": """
        def list(self, prefix): return dict(list(self.inner.list(prefix).items())[:1000])
    """,
    "ListsFromACache": """
        def list(self, prefix):
            self.__dict__.setdefault("cache", {}).setdefault(prefix, self.inner.list(prefix))
            return self.cache[prefix]
    """,
    "RefusesMissingFolders": """
        def list(self, prefix):
            found = self.inner.list(prefix)
            if not found: raise NotFoundError("x")
            return found
    """,
    "HasNoClock": """
        def list(self, prefix):
            return {k: Entry(key=k, nbytes=e.nbytes, modified=math.nan)
                    for k, e in self.inner.list(prefix).items()}
    """,
    "DeletesNothing": "def delete(self, key): pass",
    "DeletesTooMuch": "def delete(self, key): self.inner._objects.clear()",
    "DeleteNeedsAnObject": """
        def delete(self, key):
            self.inner.read(key)
            self.inner.delete(key)
    """,
    "NeverReusesAKey": """
        def delete(self, key):
            self.__dict__.setdefault("gone", set()).add(key)
            self.inner.delete(key)
        def create(self, key, data, *, durable=True):
            if key in self.__dict__.get("gone", ()): raise ConflictError("x")
            self.inner.create(key, data)
    """,
    "MixesUpThreads": """
        def create(self, key, data, *, durable=True):
            self.last = data; time.sleep(0.0001); self.inner.create(key, self.last)
    """,
    "DiesInAFork": """
        pid = os.getpid()
        def create(self, key, data, *, durable=True):
            if os.getpid() != self.pid: raise RuntimeError("not fork-safe")
            self.inner.create(key, data)
    """,
}


@pytest.mark.slow
def test_every_test_of_the_suite_catches_a_broken_backend(tmp_path: pathlib.Path) -> None:
    lines = [textwrap.dedent(HEAD)]
    for name, body in BROKEN.items():
        lines.append(
            f"class {name}(Wrapped):\n{textwrap.indent(textwrap.dedent(body), '    ')}"
        )
        lines.append(f"class Test{name}(BackendConformance):")
        lines.append(f"    @pytest.fixture\n    def backend(self): return {name}()")
    lines.append("class TestWhole(BackendConformance):")
    lines.append("    @pytest.fixture\n    def backend(self): return Wrapped()")
    (tmp_path / "test_broken.py").write_text("\n".join(lines))

    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rf", "-p", "no:cacheprovider"]
    top = str(pathlib.Path(__file__).parents[3])
    run = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": top},
    )

    failed = re.findall(r"^FAILED test_broken\.py::Test(\w+)::(\w+)", run.stdout, re.MULTILINE)
    by_backend = collections.Counter(backend for backend, _ in failed)
    by_test = collections.Counter(test for _, test in failed)
    tests = {name for name in dir(BackendConformance) if name.startswith("test_")}
    assert set(by_backend) == set(BROKEN), run.stdout[-3000:]
    assert tests - set(by_test) == set(), "no broken backend needs these"
