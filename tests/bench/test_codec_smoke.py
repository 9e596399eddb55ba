"""The measurement of the codecs still runs, and finds that planes keep less than frames."""

from __future__ import annotations

from tests.bench import codec as bench


def test_planes_keep_less_than_frames() -> None:
    for title, array in bench.states(4 << 20).items():
        whole, planes = (bench.measured(array, name, 2, 1) for name in bench.CODECS)
        assert planes["kept"] < whole["kept"] < 1, title
        assert min(planes["encode"], planes["decode"]) > 0
