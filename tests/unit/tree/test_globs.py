"""Which paths a pattern selects."""

from __future__ import annotations

import pytest

from ckptfmt import tree

SELECTS = [
    ("model", "model", "itself"),
    ("model", "model/a/b", "everything below a container"),
    ("model/a", "model/a/b", "everything below an inner container"),
    ("*", "model", "one component"),
    ("*/w", "model/w", "one component and more"),
    ("mod*", "model", "the end of a component"),
    ("*el", "model", "the beginning of a component"),
    ("m*d*l", "model", "parts of a component"),
    ("m*", "m", "no text"),
    ("m?del", "model", "one character"),
    ("a*", "a\nb", "a line break"),
    ("**", "model/a/b", "everything"),
    ("**", "", "the empty key"),
    ("model/**", "model/a/b", "all levels"),
    ("model/**", "model", "no level"),
    ("**/w", "model/a/w", "any level before"),
    ("**/w", "w", "no level before"),
    ("model/**/w", "model/w", "no level between"),
    ("model/**/w", "model/a/b/w", "levels between"),
    ("**/a/**/b/**", "x/a/a/y/b/b/z", "several of them"),
    ("**/**/w", "w", "two in a row"),
    ("a**b", "axb", "two stars inside a component are one"),
    ("layer.0", "layer.0", "a dot is a dot"),
    ("a[0]", "a[0]", "brackets are brackets"),
    ("a*b", "a*b/c", "below a key with a star in it"),
    ("a~1b", "a~1b", "an escaped slash"),
    ("a/", "a/", "an empty key"),
    ("ü*", "üü", "any letters"),
    ("", "/a/b", "below the empty key"),
]
SELECTS_NOT = [
    ("model", "models", "a longer name"),
    ("model", "a/model", "a deeper name"),
    ("model/a", "model", "the container of it"),
    ("*", "model/w", "two components"),
    ("model/*", "model/a/b", "below what a star fits"),
    ("*/w", "w", "a missing component"),
    ("a?b", "a/b", "the slash"),
    ("a*b", "a/b", "the slash again"),
    ("m?", "m", "a missing character"),
    ("**/w", "model/w/x", "more components"),
    ("model/**/w", "modelx/w", "a longer beginning"),
    ("model/**", "models/w", "a longer first component"),
    ("**/a/b", "a/x/b", "components apart"),
    ("**/a/**/b/**/c", "x/a/c", "a missing component between"),
    ("**/a/**/b/**/c", "x/b/c", "a missing component before"),
    ("a*b*c*d", "abd", "a missing letter"),
    ("a*b*c*d", "acd", "another missing letter"),
    ("layer.0", "layerx0", "a dot is not any character"),
    ("a[0]", "a0", "brackets are no set"),
    ("", "a", "the empty key is not everything"),
    ("a", "", "the empty key"),
    ("m*", "m\n/a", "two components, one with a line break"),
    ("model", "model\n", "a line break at the end"),
    ("mode?", "model\n", "a line break after a pattern"),
]


@pytest.mark.parametrize(("pattern", "path", "why"), SELECTS)
def test_a_pattern_selects(pattern: str, path: str, why: str) -> None:
    assert tree.matches(pattern, path), why


@pytest.mark.parametrize(("pattern", "path", "why"), SELECTS_NOT)
def test_a_pattern_does_not_select(pattern: str, path: str, why: str) -> None:
    assert not tree.matches(pattern, path), why


def test_any_of_several_patterns_is_enough() -> None:
    assert tree.matches(["x", "*/b"], "a/b")
    assert tree.matches(("a", "x"), "a/b")
    assert not tree.matches(["x", "y*"], "a/b")
    assert not tree.matches([], "a/b")


def test_a_matcher_is_a_test_for_many_paths() -> None:
    test = tree.matcher(["model/**", "step"])

    assert [test(path) for path in ("model/w", "step", "optimizer/w", "step/x")] == [
        True, True, False, True,
    ]  # fmt: skip


@pytest.mark.timeout(30)  # hours, if it tried every way to fit
@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 30 + "b", "a" * 300),
        ("**/a/" * 10 + "b", "a/" * 90 + "c"),
        ("**/*a*a*a*/" * 5 + "b", ("a" * 20 + "/") * 40 + "c"),
    ],
)
def test_no_pattern_takes_forever(pattern: str, path: str) -> None:
    assert not tree.matches(pattern, path)
