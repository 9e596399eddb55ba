"""House rules that a search can check. Rules for imports and sizes: test_layers.py."""

from __future__ import annotations

import ast
import functools
import io
import pathlib
import re
import subprocess
import tokenize
from collections.abc import Iterator
from typing import Final

import pytest

ROOT: Final = pathlib.Path(__file__).parents[1]
SKIPPED_FOLDERS: Final = {"__pycache__", "build", "dist"}
BINARY: Final = {
    ".bin",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
    ".png",
    ".pt",
    ".safetensors",
}

# Comparisons with a tolerance. Ours are bitwise; (file, name) → why this one may not be.
TOLERANT: Final = re.compile(
    r"(assert_)?allclose|isclose|approx|assert_(array_)?almost_equal(_nulp)?|assert_array_max_ulp"
)
TOLERANT_ALLOWED: Final[dict[tuple[str, str], str]] = {}

# Modules that execute, or make, executable data; joblib and shelve are pickle underneath.
PICKLES: Final = {
    "_pickle", "cloudpickle", "copyreg", "dill", "joblib", "marshal", "pickle", "pickletools",
    "shelve",
}  # fmt: skip
PICKLE_ALLOWED: Final = {"ckptfmt/migrate/_pickle.py"}

# What a caller cannot tell from a bug. Protocols need IndexError, AttributeError and their kin.
FOREIGN_ERRORS: Final = {
    "AssertionError", "BaseException", "Exception", "IOError", "KeyError", "OSError",
    "RuntimeError", "TypeError", "ValueError",
}  # fmt: skip

# (file, type) → who turns it into one of ours before a caller sees it.
FOREIGN_ALLOWED: Final = {
    ("ckptfmt/backends/_syscalls.py", "OSError"): "it is the system call; `local` translates",
    ("ckptfmt/format/_msgpack.py", "ValueError"): "msgpack calls it; `decode` translates",
}

# HOUSE words (vocabulary): a word in an identifier → the word to use.
WORDS: Final = {
    "blob": "data file", "checksum": "digest", "compressor": "codec", "etag": "digest",
    "fqn": "path", "fsck": "verify", "helper": "name what it does", "impl": "a better name",
    "manager": "a better name", "offload": "stage", "prune": "delete or collect",
    "serializer": "codec", "snapshot": "checkpoint", "util": "name what it does",
    "vacuum": "collect",
}  # fmt: skip
CORE_WORDS: Final = {"tensor": "array (tensors live in ckptfmt_torch)"}
MODULE_NAMES: Final = {"common", "helpers", "misc", "types", "util", "utils"}

# Written so that they do not match themselves.
LOCAL: Final = re.compile(
    r"(?:(?<![\w.~}>/])|(?<=file://))/(?:[w]ork|[h]ome|[r]oot|[U]sers|[o]pt|[m]nt/[a-z])/"
    r"|\b[A-Z]:\\{1,2}[U]sers"
)
REGISTRY: Final = re.compile(
    r"pypi[.]org|pythonhosted[.]org|anaconda[.]org|--(?:extra-)?index[-]url"
    r"|--find[-]links|--trusted[-]host|artifact[o]ry|/sim[p]le/",
    re.IGNORECASE,
)
TO_DO: Final = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")
ISSUE: Final = re.compile(r"\(#\d+\)|issue \d+")


def _tracked() -> list[pathlib.Path]:
    """Return the project's files: tracked or about to be, or all of them without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # an unpacked release
        files = (file for file in ROOT.rglob("*") if file.is_file())
        return sorted(file for file in files if not _left_out(file.relative_to(ROOT)))
    files = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return sorted(file for file in files if file.is_file())  # not those just deleted


def _left_out(file: pathlib.Path) -> bool:
    return any(p in SKIPPED_FOLDERS or p.startswith(".") for p in file.parts if p != ".ci")


FILES: Final = _tracked()
NAMES: Final = {file: file.relative_to(ROOT).as_posix() for file in FILES}
# Checkpoints and licences of others, kept as they are.
FOREIGN: Final = tuple(
    f"tests/corpus/{part}/" for part in ("files", "made", "truth", "LICENSES", "bad")
)
OURS: Final = [file for file in FILES if not NAMES[file].startswith(FOREIGN)]
TEXT: Final = [file for file in OURS if file.suffix not in BINARY]
PYTHON: Final = [file for file in FILES if file.suffix == ".py"]
TESTS: Final = [file for file in PYTHON if NAMES[file].startswith("tests/")]
CORE: Final = [file for file in PYTHON if NAMES[file].startswith("ckptfmt/")]
LIBRARY: Final = [file for file in PYTHON if NAMES[file].startswith(("ckptfmt/", "adapters/"))]
SELF: Final = pathlib.Path(__file__)


@functools.cache
def _parse(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _text_lines() -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line of each text file."""
    for file in TEXT:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            yield f"{NAMES[file]}:{number}", line


def _found(pattern: re.Pattern[str]) -> list[str]:
    return [f"{place}: {line.strip()}" for place, line in _text_lines() if pattern.search(line)]


def test_the_lists_are_not_empty() -> None:
    """Everything below passes on no files at all."""
    assert {"pyproject.toml", "ckptfmt/errors.py", "tests/test_style.py"} <= set(NAMES.values())
    assert "ckptfmt/errors.py" in {NAMES[file] for file in CORE}
    assert "adapters/ckptfmt_torch/__init__.py" in {NAMES[file] for file in LIBRARY}
    assert SELF in TESTS


def test_arrays_are_compared_bitwise() -> None:
    found = {
        (NAMES[file], name)
        for file in TESTS
        for node in ast.walk(_parse(file))
        if (name := _name(node)) and TOLERANT.fullmatch(name)
    }

    assert found - TOLERANT_ALLOWED.keys() == set(), "compare dtype, shape and tobytes()"
    assert TOLERANT_ALLOWED.keys() - found == set(), "no longer used: remove the entry"


def test_the_core_does_not_print() -> None:
    core = [file for file in CORE if not NAMES[file].startswith("ckptfmt/cli/")]

    prints = [place for file in core for place in _calls(file, "print")]

    assert prints == [], "log, or call the caller's progress object"


def test_no_pickle() -> None:
    importers = {
        f"{NAMES[file]}:{node.lineno}"
        for file in LIBRARY
        if NAMES[file] not in PICKLE_ALLOWED
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Import | ast.ImportFrom) and _imported(node) & PICKLES
    }

    assert importers == set()


def test_numpy_never_unpickles() -> None:
    allowed = [f"{NAMES[f]}" for f in LIBRARY if "allow_pickle=True" in f.read_text("utf-8")]

    assert allowed == []


def test_errors_are_types_of_the_error_tree() -> None:
    found = {
        (NAMES[file], name)
        for file in LIBRARY
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Raise) and (name := _raised(node)) in FOREIGN_ERRORS
    }

    assert found - FOREIGN_ALLOWED.keys() == set(), "raise a type of ckptfmt.errors"
    assert FOREIGN_ALLOWED.keys() - found == set(), "no longer raised: remove the entry"


def test_the_library_has_no_module_state() -> None:
    found = [
        f"{NAMES[file]}:{node.lineno}: global {', '.join(node.names)}"
        for file in LIBRARY
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Global)
    ]

    assert found == [], "pass it, or keep it in the object that owns it"


def test_environment_variables_are_read_in_options_only() -> None:
    readers = {"ckptfmt/options.py", "ckptfmt/checks/environment.py"}  # the latter records them
    found = [
        f"{NAMES[file]}:{node.lineno}"
        for file in CORE
        if NAMES[file] not in readers and not NAMES[file].startswith("ckptfmt/cli/")
        for node in ast.walk(_parse(file))
        if _name(node) in {"environ", "environb", "getenv"}
    ]

    assert found == []


def test_comments_owe_nothing_without_an_issue() -> None:
    found = []
    for file in PYTHON:
        source = io.StringIO(file.read_text(encoding="utf-8"))
        for token in tokenize.generate_tokens(source.readline):
            comment = token.type == tokenize.COMMENT and TO_DO.search(token.string)
            if comment and not ISSUE.search(token.string):
                found.append(f"{NAMES[file]}:{token.start[0]}: {token.string}")

    assert found == [], "name the issue, as in (#12)"


@pytest.mark.parametrize("file", LIBRARY, ids=NAMES.get)
def test_identifiers_use_the_vocabulary(file: pathlib.Path) -> None:
    core = NAMES[file].startswith("ckptfmt/") and not NAMES[file].startswith("ckptfmt/migrate/")
    banned = WORDS | CORE_WORDS if core else WORDS

    found = {
        f"line {line}: {name!r}: say {banned[word.removesuffix('s')]}"
        for name, line in _defined(_parse(file))
        for word in _words(name)
        if word.removesuffix("s") in banned
    }

    assert found == set()


@pytest.mark.parametrize("file", LIBRARY, ids=NAMES.get)
def test_functions_are_not_called_get(file: pathlib.Path) -> None:
    found = [name for name, _ in _defined(_parse(file)) if name.startswith(("get_", "_get_"))]

    assert found == [], "name what it returns"


def test_modules_are_named_by_concept() -> None:
    assert [name for f, name in NAMES.items() if f in LIBRARY and f.stem in MODULE_NAMES] == []


def test_no_local_path_is_tracked() -> None:
    assert _found(LOCAL) == []


def test_no_registry_is_named() -> None:
    assert _found(REGISTRY) == []


def test_text_files_end_lines_alike() -> None:
    bad = [
        NAMES[file]
        for file in TEXT
        if (data := file.read_bytes()) and (b"\r\n" in data or not data.endswith(b"\n"))
    ]

    assert bad == []


def _name(node: ast.AST) -> str:
    """Return the name that a use of a variable or attribute, or an import, mentions."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return name.rpartition(".")[2]
    return ""


def _calls(file: pathlib.Path, function: str) -> list[str]:
    return [
        f"{NAMES[file]}:{node.lineno}"
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function
    ]


def _raised(node: ast.Raise) -> str:
    error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return ast.unparse(error) if error else ""


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if not node.level else set()


def _defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the names a module gives to functions, classes, arguments and variables."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno


def _words(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
