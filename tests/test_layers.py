"""The architecture, executable: who may import what, and how large a thing may grow.

Every import counts, wherever it stands: in a function, under TYPE_CHECKING, relative or not.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Final

import pytest

ROOT: Final = pathlib.Path(__file__).parents[1]
MAX_MODULE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 60
MAX_ROOT_LINES: Final = 60  # ckptfmt/__init__.py: public names, no logic

L0 = {"errors", "dtypes", "leaves", "pause"}
L1 = {"format", "backends", "tree", "training", "checks", "rng", "group", "loops", "options"}
L2 = {"_engine"}
L3 = {"_store", "api", "copying", "reports"}
PUBLIC = {"ckptfmt", "errors"} | (L1 - {"options"})
EDGES = {"migrate", "testing"}

# Layer → layers it may import besides itself. A layer is the first name below `ckptfmt`;
# `ckptfmt` alone is the root package, whose import pulls in everything up to L3.
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "errors": set(),
    "dtypes": {"errors"},
    "leaves": {"errors", "dtypes"},
    "pause": set(),
    **dict.fromkeys(L1, L0),  # siblings do not know each other
    "_engine": L0 | L1,
    **dict.fromkeys(L3, L0 | L1 | L2 | L3),  # among themselves without cycles
    "ckptfmt": L0 | L1 | L2 | L3,
    **dict.fromkeys(EDGES, L0 | L1 | L2 | L3 | {"ckptfmt"}),
    "cli": L0 | L1 | L2 | L3 | EDGES | {"ckptfmt"},
    "__main__": {"cli"},
    "ckptfmt_torch": PUBLIC | EDGES,
    "ckptfmt_keras": PUBLIC | EDGES,
}

NUMPY = {"numpy", "ml_dtypes"}
# Layer → distributions it may import. Nobody but the owner talks to msgpack, fsspec or rich.
MAY_REQUIRE: Final[dict[str, set[str]]] = {
    "errors": set(),
    "format": NUMPY | {"msgpack", "xxhash", "zstandard"},
    "backends": {"fsspec", "numpy"},  # numpy: copies that let other threads go on
    "ckptfmt": set(),
    "cli": NUMPY | {"rich", "matplotlib"},
    "__main__": set(),
    "testing": NUMPY | {"hypothesis", "pytest"},
    "migrate": NUMPY | {"h5py", "msgpack", "safetensors", "zstandard"},
    "ckptfmt_torch": NUMPY | {"lightning", "torch", "transformers"},
    "ckptfmt_keras": NUMPY | {"jax", "keras", "tensorflow", "torch"},
}

# `format` turns bytes into objects and back: no file, clock, randomness, thread or network.
# (datetime is a leaf type; its clock is barred by name.)
IMPURE: Final = {
    "asyncio", "concurrent", "fcntl", "glob", "multiprocessing", "os", "pathlib",
    "random", "secrets", "shutil", "socket", "subprocess", "tempfile", "threading", "time",
    "urllib", "uuid",
}  # fmt: skip
IMPURE_CALLS: Final = {"open", "print", "now", "today", "utcnow"}

# A row of the drawing: a name, at least two spaces, what it does.
ROW: Final = re.compile(r"(?P<name>[a-z_]+) {2,}\S")

# (module, function) → why it must catch everything. An entry that no longer applies fails.
BROAD: Final[dict[tuple[str, str], str]] = {
    ("ckptfmt.backends._write", "_Piece._run"): "raised again where the piece is waited for",
    (
        "ckptfmt.backends._failures",
        "Blocks.__next__",
    ): "noted as the caller's, raised again",
    (
        "ckptfmt.backends._upload",
        "again",
    ): "clients have types of their own; raised at last",
    ("ckptfmt._engine.meet", "meet"): "told to the other ranks, raised again",
    ("ckptfmt.cli.doctor", "run"): "shows and says it: the user's own code may raise anything",
    ("ckptfmt_keras.fitting", "_fit_to_edge"): "raised again, or the cause of it",
    ("ckptfmt._engine.meet", "_Lead.orders"): "told to the other ranks, raised again",
    ("ckptfmt._engine.threads", "Threads._run"): "carries the error to the thread that waits",
    (
        "ckptfmt._store.pending",
        "PendingSave._work",
    ): "carries the error to `wait`, whatever it is",
    (
        "ckptfmt.checks.proof",
        "Proof.completed",
    ): "reports and logs it: all is restored, and a model may raise anything",
    (
        "ckptfmt._store.store",
        "Store.__exit__",
    ): "logs it: another is already on its way out",
}


def _modules() -> dict[str, pathlib.Path]:
    """Map dotted names to files, for the library and its adapters."""
    tops = [ROOT / "ckptfmt", *sorted((ROOT / "adapters").glob("ckptfmt_*"))]
    files: dict[str, pathlib.Path] = {}
    for top in tops:
        for file in sorted(top.rglob("*.py")):
            parts = file.relative_to(top.parent).with_suffix("").parts
            files[".".join(parts).removesuffix(".__init__")] = file
    return files


FILES: Final = _modules()


@functools.cache
def _parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"), filename=str(FILES[module]))


def layer(module: str) -> str:
    """Return the layer a module of ours belongs to."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "ckptfmt" and rest else top


def imports(module: str, tree: ast.Module) -> set[str]:
    """Return every name that `module` imports, as long as a module of ours goes."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from ckptfmt import errors` imports a module, `from ckptfmt import save` a name.
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(name if name in FILES else base for name in names)
    return found


def ours(module: str, tree: ast.Module) -> set[str]:
    """Return the modules of ours that `module` imports, other than itself."""
    return {name for name in imports(module, tree) if _top(name) in TOPS} - {module}


def _top(name: str) -> str:
    return name.partition(".")[0]


TOPS: Final = {_top(name) for name in FILES}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    own = layer(module)
    assert own in MAY_IMPORT, f"{module}: give layer {own!r} its place in MAY_IMPORT"
    allowed = MAY_IMPORT[own] | {own}

    illegal = {name for name in ours(module, _parse(module)) if layer(name) not in allowed}

    assert not illegal, f"{module} (layer {own!r}) must not import {sorted(illegal)}"


@pytest.mark.parametrize("module", FILES)
def test_each_layer_requires_only_its_own_distributions(module: str) -> None:
    allowed = MAY_REQUIRE.get(layer(module), NUMPY) | TOPS | sys.stdlib_module_names

    illegal = {_top(name) for name in imports(module, _parse(module))} - allowed

    assert not illegal, f"{module} (layer {layer(module)!r}) must not import {sorted(illegal)}"


@pytest.mark.parametrize("room", ["ckptfmt._engine", "ckptfmt._store"])
def test_modules_of_a_room_know_only_those_drawn_above_them(room: str) -> None:
    """The drawing in the docstring of the room is the order."""
    drawing = (ast.get_docstring(_parse(room)) or "").splitlines()
    rows = [found["name"] for line in drawing if (found := ROW.match(line))]
    order = {f"{room}.{name}": rank for rank, name in enumerate(rows)}
    modules = {name for name in FILES if name.startswith(f"{room}.")}

    other = sorted(modules ^ order.keys())
    assert other == [], f"drawn and not there, or there and not drawn: {other}"
    illegal = {
        f"{module} imports {used}"
        for module in modules
        for used in ours(module, _parse(module)) & modules
        if order[used] > order[module]
    }
    assert illegal == set()


@pytest.mark.parametrize("module", [name for name in FILES if layer(name) == "format"])
def test_format_is_pure(module: str) -> None:
    tree = _parse(module)
    impure = {_top(name) for name in imports(module, tree)} & IMPURE
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    impure |= {call for call in calls if call.rpartition(".")[2] in IMPURE_CALLS}

    assert not impure, f"{module} turns bytes into objects and back: no {sorted(impure)}"


def test_msgpack_is_imported_in_one_place() -> None:
    users = {m for m in FILES if "msgpack" in {_top(n) for n in imports(m, _parse(m))}}

    assert {name for name in users if layer(name) != "migrate"} <= {"ckptfmt.format._msgpack"}


def test_imports_have_no_cycles() -> None:
    graph = {module: ours(module, _parse(module)) & FILES.keys() for module in FILES}

    cycles = [sorted(group) for group in _components(graph) if len(group) > 1]

    assert cycles == []


def test_modules_stay_short() -> None:
    lines = {m: len(file.read_text(encoding="utf-8").splitlines()) for m, file in FILES.items()}

    long = {m: n for m, n in lines.items() if n > MAX_MODULE_LINES}

    assert long == {}, f"longer than {MAX_MODULE_LINES} lines: {long}"
    assert lines["ckptfmt"] <= MAX_ROOT_LINES


def test_functions_stay_short() -> None:
    long = {
        f"{module}.{name}": size
        for module in FILES
        for name, node in _functions(_parse(module))
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }

    assert long == {}, f"longer than {MAX_FUNCTION_LINES} lines: {long}"


def test_no_handler_is_broad() -> None:
    found = {(module, name) for module in FILES for name in _broad(_parse(module))}

    assert found - BROAD.keys() == set(), "catch what can be handled, or say why in BROAD"
    assert BROAD.keys() - found == set(), "no longer broad: remove the entry"


def _functions(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its qualified name, nested ones and methods too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def _broad(tree: ast.Module) -> set[str]:
    """Return the qualified names of functions that catch or suppress everything."""
    owner: dict[int, str] = {}
    for name, function in _functions(tree):  # outer before inner: the innermost name stays
        owner.update((id(node), name) for node in ast.walk(function))
    return {owner.get(id(node), "<module>") for node in ast.walk(tree) if _catches_all(node)}


def _catches_all(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or _names_all(node.type)
    suppresses = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
    return suppresses and any(_names_all(arg) for arg in node.args)


def _names_all(node: ast.expr) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return groups of modules that reach each other."""
    reach = {start: _reachable(graph, start) for start in graph}
    groups: list[set[str]] = []
    for start in graph:
        if not any(start in group for group in groups):
            groups.append({start} | {m for m in reach[start] if start in reach[m]})
    return groups


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo.extend(new)
    return seen
