"""Tables that fit."""

from __future__ import annotations

from ckptfmt.cli import table, text
from ckptfmt.cli.table import Column, Styled


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    columns = [Column(title="name"), Column(title="size", right=True), Column(title="tags")]

    shown = table.lines(table.lay(columns, [("a", "1.0 MiB", ""), ("重み", "2 B", "x")], None))

    assert shown == [
        "name     size  tags",
        "----  -------  ----",
        "a     1.0 MiB",
        "重み      2 B  x",
    ]


def test_a_table_without_titles_has_rows_only() -> None:
    columns = [Column(title=""), Column(title="")]

    assert table.lines(table.lay(columns, [("seen", "1")], None)) == ["seen  1"]


def test_what_does_not_fit_is_left_out_from_the_right() -> None:
    columns = [
        Column(title="number"),
        *(Column(title=f"metric{n}", optional=True) for n in range(3)),
        Column(title="size"),
    ]
    rows = [("1", "0.5", "0.6", "0.7", "1.0 MiB")]

    laid = table.lay(columns, rows, 34)

    assert [column.title for column in laid.columns] == ["number", "metric0", "metric1", "size"]
    assert laid.left_out == ("metric2",)
    assert table.lay(columns, rows, 10).left_out == ("metric0", "metric1", "metric2")
    assert table.lay(columns, rows, None).left_out == ()


def test_folding_takes_the_column_that_costs_the_fewest_lines() -> None:
    columns = [Column(title="tree", folds=True), Column(title="value", folds=True)]
    rows = [("x" * 30, "1"), ("y" * 30, "2"), ("z" * 30, "a " * 20)]

    laid = table.lay(columns, rows, 50)

    assert laid.widths == (30, 18)
    assert [len(row[0][0]) for row in laid.rows] == [1, 1, 1]


def test_words_are_torn_apart_only_when_nothing_else_is_left() -> None:
    columns = [Column(title=title, folds=True) for title in ("what", "saved", "why")]
    rows = [("PYTHONHASHSEED", "0", "it selects kernels"), ("x", "a b c d e f g h i j", "y")]

    roomy = table.lines(table.lay(columns, rows, 42))
    narrow = table.lines(table.lay(columns, rows, 40))

    assert any("PYTHONHASHSEED" in line for line in roomy)
    assert max(map(text.cells, narrow)) <= 40
    assert any("PYTHONHASHSE" in line for line in narrow)


def test_no_line_is_wider_than_the_terminal() -> None:
    columns = [
        Column(title="tree", folds=True),
        Column(title="n"),
        Column(title="v", folds=True),
    ]
    rows = [("a/b.c" * 20, "12", "word " * 30), ("    indented.deep/" + "k" * 60, "3", "")]

    for width in (36, 60, 80, 120):
        lines = table.lines(table.lay(columns, rows, width))

        assert max(map(text.cells, lines)) <= width
        for part in ("a/b.c", "kkkk", "word"):
            assert any(part in line for line in lines)


def test_the_rest_of_a_folded_cell_keeps_its_indent() -> None:
    columns = [Column(title="", folds=True), Column(title="")]

    lines = table.lines(table.lay(columns, [("    state/weight/momentum", "F32")], 24))

    assert lines == ["    state/weight/    F32", "    momentum"]


def test_numbers_are_never_broken() -> None:
    columns = [Column(title="path", folds=True), Column(title="A", folds=True)]

    laid = table.lay(columns, [("p" * 60, "4.999999999999998e-05")], 40)

    assert laid.rows[0][1][0] == ("4.999999999999998e-05",)


def test_cells_are_made_safe_before_they_are_measured() -> None:
    laid = table.lay([Column(title="name")], [(Styled("\x1b[2J", "bad"),)], None)

    assert laid.rows == (((("\\x1b[2J",), "bad"),),)
    assert laid.widths == (7,)
