"""XGBoost's models as JSON and UBJSON; and the binary ones of before 1.0 to 2.x.

The numbers of a tree become arrays, with the names they have in JSON; XGBoost has floats of 32
bits. Format: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html. The binary
format is that of `LearnerModelParam`, `GBTreeModelParam` and `TreeParam` in XGBoost's source;
XGBoost itself has not read it since 3.1.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate import texts, ubjson
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Array, Contents, Lazy, Note

MAX_JSON_NBYTES: Final = 2**30
_FLOATS: Final = frozenset(
    {
        "base_weights",
        "loss_changes",
        "split_conditions",
        "sum_hessian",
        "weights",
        "weight_drop",
    }
)
_LEARNER: Final = b'"learner"'
_UBJSON: Final = (b"{L", b"{i", b"{U", b"{I", b"{l", b"{#", b"{$")
_BINARY: Final = b"binf"
_PARAMETERS_NBYTES: Final = 136
_OBJECTIVES: Final = (b"reg:", b"binary:", b"multi:", b"rank:", b"count:", b"survival:")
_NODE: Final = np.dtype(
    [("parents", "<i4"), ("left_children", "<i4"), ("right_children", "<i4"),
     ("split_indices", "<u4"), ("split_conditions", "<f4")]
)  # fmt: skip
_STATISTIC: Final = np.dtype(
    [("loss_changes", "<f4"), ("sum_hessian", "<f4"), ("base_weights", "<f4"),
     ("leaf_child_counts", "<i4")]
)  # fmt: skip


def read(place: Place) -> Contents | None:
    """Return one model, or None."""
    span = place.span()
    if span is None:
        return None
    head = span.head(4096)
    if head[:1] == b"{" and _LEARNER in head[:512].replace(b" ", b""):
        return _contents(span, _typed(texts.parse(span, limit=MAX_JSON_NBYTES)), "json")
    if head.startswith(_UBJSON) and b"learner" in head:
        return _contents(span, ubjson.parse(span), "ubj")
    start = 4 if head[:4] == _BINARY else 0
    if _is_binary(head[start:]):
        return _contents(span, {"learner": _Binary(span, start).learner()}, "binary")
    return None


def _contents(span: Span, root: Any, kind: str) -> Contents | None:
    inner = root.get("learner") if isinstance(root, dict) else None
    if not isinstance(inner, dict) or "gradient_booster" not in inner:
        return None
    version = root.get("version")
    if isinstance(version, Lazy):
        version = version.load().tolist()
    plain = isinstance(version, list) and all(type(n) is int for n in version[:3])
    number = ".".join(map(str, version[:3])) if plain and isinstance(version, list) else ""
    text = "the buffer of predictions behind the trees, where there is one, is kept as bytes"
    return Contents(
        format=f"xgboost-{kind}",
        root=root,
        files=(span.name,),
        producer=f"XGBoost {number}".strip(),
        notes=(Note(path="", text=text),) if kind == "binary" else (),
        roles={"learner": "model"},
    )


def _typed(node: Any, name: str = "") -> Any:
    """Return JSON with its lists of numbers as arrays."""
    if isinstance(node, dict):
        return {key: _typed(child, key) for key, child in node.items()}
    if not isinstance(node, list) or name == "version":
        return node
    kinds = set(map(type, node))
    if name in _FLOATS and kinds and kinds <= {int, float}:
        return Lazy.of(_floats(node, name))
    if kinds == {int} and all(-(2**31) <= n < 2**31 for n in node):
        return Lazy.of(np.asarray(node, np.int32))
    return [_typed(child) for child in node]


def _floats(numbers: list[Any], name: str) -> Array:
    wide = np.asarray(numbers, np.float64)
    with np.errstate(over="ignore"):
        found: Array = wide.astype(np.float32)
    if (np.isfinite(wide) & ~np.isfinite(found)).any():
        raise FormatError("a number beyond 32 bits", path=name)
    return found


def _is_binary(head: bytes) -> bool:
    """Tell whether a model of the binary format begins here: its parameters, an objective."""
    nbytes = int.from_bytes(head[_PARAMETERS_NBYTES:][:8], "little")
    name = head[_PARAMETERS_NBYTES + 8 :][:nbytes]
    return 4 < nbytes < 64 and len(name) == nbytes and name.startswith(_OBJECTIVES)


class _Binary:
    """A model of the binary format, with the names that JSON has."""

    def __init__(self, span: Span, start: int) -> None:
        self._at = Cursor(span, start)

    def learner(self) -> dict[str, Any]:
        """Return the whole model.

        Raises:
            UnsupportedError: a booster other than trees.
        """
        at = self._at
        base, features = at.number("f", "parameters"), at.number("I", "parameters")
        classes, has_attributes, has_metrics = (at.number("i", "parameters") for _ in range(3))
        reserved = at.take(_PARAMETERS_NBYTES - 20, "parameters")
        objective = at.text("Q", "an objective")
        booster = at.text("Q", "a booster")
        if booster not in ("gbtree", "dart"):
            raise UnsupportedError(
                "only trees of XGBoost's binary format are read: save it as JSON with an "
                "XGBoost from 1.0 to 3.0",
                file=at.span.name,
                found=booster,
            )
        found: dict[str, Any] = {
            "learner_model_param": {
                "base_score": np.float32(base),
                "num_feature": features,
                "num_class": classes,
                "contain_extra_attrs": has_attributes,
                "contain_eval_metrics": has_metrics,
                "reserved": bytes(reserved),
            },
            "objective": {"name": objective},
            "gradient_booster": {"name": booster, "model": self._trees()},
        }
        if at.left:
            found["rest"] = bytes(at.take(at.left, "the rest"))  # attributes, predictions
        return found

    def _trees(self) -> dict[str, Any]:
        at = self._at
        count = at.number("i", "the number of trees")
        numbers = [at.number("i", "parameters") for _ in range(3)]
        buffer = at.number("q", "parameters")
        groups, leaf = at.number("i", "parameters"), at.number("i", "parameters")
        reserved = bytes(at.take(32 * 4, "parameters"))
        if not 0 <= count * 148 <= at.left:
            raise FormatError("too short for its trees", file=at.span.name, found=count)
        trees = [self._tree() for _ in range(count)]
        info = np.frombuffer(at.take(count * 4, "the groups of the trees"), "<i4")
        return {
            "gbtree_model_param": {
                "num_trees": count,
                "numbers": numbers,
                "num_pbuffer": buffer,
                "num_output_group": groups,
                "size_leaf_vector": leaf,
                "reserved": reserved,
            },
            "trees": trees,
            "tree_info": Lazy.of(info),
        }

    def _tree(self) -> dict[str, Any]:
        at = self._at
        roots, nodes, deleted, depth, features, leaf = (
            at.number("i", "a tree") for _ in range(6)
        )
        reserved = bytes(at.take(31 * 4, "a tree"))
        if nodes < 1 or nodes * (_NODE.itemsize + _STATISTIC.itemsize) > at.left:
            raise FormatError(
                "a tree without room for its nodes", file=at.span.name, found=nodes
            )
        found: dict[str, Any] = {
            "tree_param": {
                "num_roots": roots,
                "num_nodes": nodes,
                "num_deleted": deleted,
                "max_depth": depth,
                "num_feature": features,
                "size_leaf_vector": leaf,
                "reserved": reserved,
            }
        }
        for kind in (_NODE, _STATISTIC):
            rows = np.frombuffer(at.take(nodes * kind.itemsize, "a tree"), kind)
            found |= {name: Lazy.of(rows[name]) for name in kind.names or ()}
        if leaf:
            vector = at.take(at.count("Q", 4, "a leaf's vector") * 4, "a leaf's vector")
            found["leaf_vector"] = Lazy.of(np.frombuffer(vector, "<f4"))
        return found
