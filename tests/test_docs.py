"""The documentation is true where a program can tell: its code runs, its links lead somewhere,
the tests it cites exist, and the messages it quotes are in the source."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import pytest

import ckptfmt
from ckptfmt import errors
from ckptfmt.backends import MemoryBackend

ROOT: Final = pathlib.Path(__file__).parents[1]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS: Final = {
    "README.md", "api-stability.md", "architecture.md", "errors.md",
    "format-version-policy.md", "guarantees.md", "many-ranks.md",
    "platforms.md", "quickstart.md",
}  # fmt: skip
MAX_EXAMPLE_LINES: Final = 20

BLOCK: Final = re.compile(r"^```python *(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
LINK: Final = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")
CITED: Final = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")

# Runs the blocks of a page one after the other in one namespace; errors show the page's lines.
RUNNER: Final = """
import pathlib, re, sys
page, numbers = pathlib.Path(sys.argv[1]), set(map(int, sys.argv[2:]))
text = page.read_text(encoding="utf-8")
space = {"__name__": "__main__"}
for n, block in enumerate(re.finditer(sys.stdin.read(), text, re.M | re.S)):
    if n in numbers:
        above = text.count("\\n", 0, block.start("code"))
        exec(compile("\\n" * above + block["code"], str(page), "exec"), space)
"""


def _blocks(page: pathlib.Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def _name(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _prose(page: pathlib.Path) -> str:
    """Return the page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_every_page_is_there() -> None:
    assert {page.name for page in PAGES} >= OURS


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=_name)
def test_python_blocks_run(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In an empty folder, in order, as a reader would type them; a warning is an error."""
    numbers = [str(n) for n, block in enumerate(_blocks(page)) if not block["info"]]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER, page, *numbers],
        input=BLOCK.pattern,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_block_that_does_not_run_says_why() -> None:
    for page in PAGES:
        for block in _blocks(page):
            assert re.fullmatch(r"|no-run: \S.{5,}", block["info"]), (_name(page), block[0])


def test_blocks_of_other_languages_are_named() -> None:
    """A block without a language might be Python that nobody runs."""
    for page in PAGES:
        opening = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
        assert all(opening), _name(page)


def test_the_readme_begins_with_a_short_example() -> None:
    first = _blocks(ROOT / "README.md")[0]

    assert first["info"] == ""
    assert first["code"].count("\n") <= MAX_EXAMPLE_LINES


def test_the_readme_says_how_to_start_on_its_first_screen() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]

    for needed in ("make demo", "make test", "pip install .", "Python ≥ 3.11"):
        assert any(needed in line for line in top), needed


def test_the_benchmark_has_its_place_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert text.count("<!-- bench:begin -->") == text.count("<!-- bench:end -->") == 1
    between = text.partition("<!-- bench:begin -->")[2].partition("<!-- bench:end -->")[0]
    assert "make bench" in between


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    dead = []
    for link in LINK.findall(_prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)

    assert dead == []


def _anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_cited_tests_exist(page: pathlib.Path) -> None:
    cited = CITED.findall(_prose(page))

    assert [f"{file}::{name}" for file, name in cited if not _defines(ROOT / file, name)] == []


def _defines(file: pathlib.Path, name: str) -> bool:
    if not file.exists():
        return False
    return not name or bool(re.search(rf"^\s*def {name}\(", file.read_text("utf-8"), re.M))


def test_every_promise_of_the_readme_is_shown_by_something() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("## What is promised")[2]
    rows = [row for row in table.partition("\n## ")[0].splitlines() if row.startswith("| ")][1:]

    assert len(rows) >= 10
    assert [row for row in rows if not CITED.search(row)] == []


def test_cited_modules_exist() -> None:
    cited = re.compile(r"`((?:ckptfmt|examples|constraints|spec)/[\w/.]+)`")
    for page in PAGES:
        for file in cited.findall(_prose(page)):
            assert (ROOT / file).exists(), (_name(page), file)


# ---- errors.md


def _sections(page: pathlib.Path) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


ERRORS: Final = _sections(ROOT / "docs" / "errors.md")
CLASSES: Final = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.CheckpointError)
}


def test_each_error_code_has_its_section() -> None:
    assert list(ERRORS) == list(CLASSES)


def test_the_table_of_errors_says_what_they_are() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(#\S+\) \| `(\w+)` \| (?:`(\w+)`)? *\|", text, re.M)

    assert [(code, kind) for code, kind, _ in rows] == [
        (code, kind.__name__) for code, kind in CLASSES.items()
    ]
    for code, _, other in rows:
        known = {base.__name__ for base in CLASSES[code].__mro__[1:]}
        assert not other or other in known, code


def _literals() -> str:
    """Return all text that the library could put into a message."""
    found = [
        node.value
        for file in sorted((ROOT / "ckptfmt").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    system = [os.strerror(number) for number in (errno.ENOSPC, errno.EACCES)]
    return "\n".join([*found, *system])


def test_quoted_messages_are_in_the_source() -> None:
    known = _literals()
    quoted = [
        message
        for text in ERRORS.values()
        for row in re.findall(r"^\| (`[^|]*) \|", text, re.M)
        for message in re.findall(r"`([^`]+)`", row)
        if not message.endswith("=")
    ]

    assert len(quoted) > 40
    assert [message for message in quoted if message not in known] == []


def _committed() -> ckptfmt.Checkpoint:
    return ckptfmt.open(MemoryBackend()).save({"model": {"w": np.zeros(3)}})


def _damaged() -> ckptfmt.Checkpoint:
    backend = MemoryBackend()
    saved = ckptfmt.open(backend).save({"model": {"w": np.zeros(3)}})
    (key,) = backend.list("data")
    data = bytearray(backend.read(key))
    data[-1] ^= 1
    backend.replace(key, bytes(data))
    return saved


def _second_writer() -> None:
    backend = MemoryBackend()
    first, second = ckptfmt.open(backend), ckptfmt.open(backend)
    first.save({"a": 1})
    second.save({"a": 2})
    first.save({"a": 3})


def _foreign() -> None:
    backend = MemoryBackend()
    backend.create("ckptfmt.json", b'{"format": "other"}')
    ckptfmt.open(backend)


def _newer() -> None:
    backend = MemoryBackend()
    backend.create("ckptfmt.json", b'{"format": "ckptfmt", "version": 99}')
    ckptfmt.open(backend)


def _full() -> None:
    class Full:
        capabilities = MemoryBackend().capabilities
        url = "memory:"

        def __getattr__(self, name: str) -> object:
            raise errors.BackendError("storage failed") from OSError(errno.ENOSPC, "full")

    ckptfmt.open(Full())  # type: ignore[arg-type]


def _cancelled() -> None:
    store = ckptfmt.open(MemoryBackend())
    go = threading.Event()
    pending = store.save_async({"w": np.zeros(10)}, progress=lambda *_: go.wait() and None)
    pending._cancel.set()  # `cancel()` would wait for the save, which waits for `go`
    go.set()
    pending.wait()


PROVOKED: Final[dict[str, Callable[[], object]]] = {
    "not-found": lambda: ckptfmt.open(MemoryBackend()).latest(),
    "conflict": _second_writer,
    "format": _foreign,
    "unsupported": _newer,
    "integrity": lambda: _damaged().load(),
    "mismatch": lambda: _committed().load(into={"model": {"w": np.zeros(4)}}),
    "state": lambda: ckptfmt.open(MemoryBackend()).save({"f": print}),
    "usage": lambda: ckptfmt.open(MemoryBackend()).resolve("newest"),
    "cancelled": _cancelled,
    "backend": _full,
}


def test_every_code_but_the_base_is_provoked() -> None:
    assert {"checkpoint", *PROVOKED} == set(CLASSES)


@pytest.mark.parametrize("code", PROVOKED)
def test_a_real_error_is_found_in_its_section(code: str) -> None:
    """What a user reads on the screen leads to the row with the way out."""
    with pytest.raises(CLASSES[code]) as caught:
        PROVOKED[code]()

    assert caught.value.code == code
    rows = [
        message
        for row in re.findall(r"^\| (`[^|]*) \|", ERRORS[code], re.M)
        for message in re.findall(r"`([^`]+)`", row)
    ]
    assert any(message in str(caught.value) for message in rows)


# ---- api-stability.md


def _public(module: str) -> set[str]:
    """Return the names a module makes public by `import … as` itself."""
    source = pathlib.Path(importlib.import_module(module).__file__ or "").read_text("utf-8")
    return set(re.findall(r"^from \S+ import (\w+) as \1$", source, re.M))


def _listed(module: str) -> Iterator[str]:
    text = (ROOT / "docs" / "api-stability.md").read_text(encoding="utf-8")
    for names, where in re.findall(r"^\| (.*) \| `([\w.]+)` \|$", text, re.M):
        if where == module:
            yield from re.findall(r"`(\w+)`", names)


@pytest.mark.parametrize("module", ["ckptfmt", "ckptfmt.backends"])
def test_public_names_are_listed(module: str) -> None:
    unlisted = {"Buffer"}  # a type alias

    assert set(_listed(module)) == _public(module) - unlisted | (
        {"open_backend"} if module == "ckptfmt.backends" else set()
    )
