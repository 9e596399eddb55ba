"""The article's snippets, rewritten with our callback, on real data: the example runs them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "keras_article.py"


@pytest.mark.timeout(900)  # minutes, where other work has the cores
def test_the_snippets_do_what_the_article_wants(tmp_path: pathlib.Path) -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=850,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = {" ".join(line.split()[:-1]) for line in ran.stdout.splitlines() if line}
    assert rows >= {
        "3 epochs, batches of 64 3,000 3",
        "batches of 100 13,500 15",  # steps // 15: some examples fall out
        "batches of 50 6,750 15",
        "batches of 100 14,300 15",  # virtual epochs: none does
        "batches of 50 14,300 15",
        "batches of 128 14,336 15",
        "1. old settings, new data 14,300 15",
        "2. the new size 15,800 15",
    }
