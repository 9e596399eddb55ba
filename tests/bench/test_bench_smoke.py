"""The benchmark still runs and still judges. No figure of this run is looked at."""

from __future__ import annotations

import json
import mmap
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from tests.bench import checking, curves, environments, measuring, readme, rounds, workloads
from tests.bench.contract import CONTENDERS, ENVIRONMENTS
from tests.bench.job import Job
from tests.bench.measures import FEW
from tests.bench.processes import JobError, Processes

ROOT: Final = pathlib.Path(__file__).parents[2]
OURS: Final = "ckptfmt_store"
PEER: Final = "safetensors_numpy"
MARKS: Final = ("<!-- bench:begin -->", "<!-- bench:end -->")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


def _bench(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the file that a quick run left."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "run.json"
    done = _bench("--quick", "--rounds", "1", "--folder", folder / "disk", "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    return file


@pytest.fixture
def run(kept: pathlib.Path) -> dict[str, Any]:
    """Return that run."""
    loaded: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return loaded


def _report(run: dict[str, Any], folder: pathlib.Path, *arguments: str | pathlib.Path) -> str:
    file = folder / "changed.json"
    file.write_text(json.dumps(run), "utf-8")
    done = _bench("--from", file, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ours_takes_part_in_every_measure(run: dict[str, Any]) -> None:
    found = {
        name: {(s["workload"], s["measure"]) for s in run["samples"] if s["contender"] == name}
        for name in (OURS, PEER, "ckptfmt_frozen", "limit_page_cache")
    }

    assert len(found[OURS]) == 33
    assert found[OURS] - found[PEER] == {("W1", "mmap")}
    assert found["ckptfmt_frozen"] == {("W3", "second-cached"), ("W3", "second-durable")}
    assert {m for m in found[OURS] if "memory" not in m[1]} == found["limit_page_cache"]


def test_what_was_saved_came_back_in_every_way(run: dict[str, Any]) -> None:
    compared = {(c["workload"], c["contender"]): c["compared"] for c in run["compared"]}

    assert run["failures"] == []
    assert compared["W1", OURS] == ["load", "load_into", "load_mmap", "listing", "one"]
    assert compared["W3", OURS] == compared["W1", OURS]
    assert compared["W4", OURS] == compared["W5", OURS] == compared["W1", OURS]
    assert compared["W6", OURS] == compared["W7", OURS] == ["list_run"]
    assert compared["W3", "ckptfmt_frozen"] == compared["W1", OURS]


def test_the_second_save_wrote_what_changed(run: dict[str, Any]) -> None:
    ours, peer = (
        next(
            s for s in run["samples"] if (s["contender"], s["measure"]) == (n, "second-cached")
        )
        for n in (OURS, PEER)
    )

    assert ours["changed"] == peer["changed"]
    assert ours["changed"] < ours["nbytes"] < 2 * ours["changed"]
    assert peer["nbytes"] > 19 * peer["changed"]


def test_cold_means_that_no_page_of_the_file_is_in_memory(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * 4096)
    with file.open("rb") as opened:
        measuring.warm(tmp_path)
        warm = measuring.cached_pages(opened.fileno())

        measuring.evict(tmp_path)

        assert warm == -(-file.stat().st_size // mmap.PAGESIZE)
        assert measuring.cached_pages(opened.fileno()) == 0


def test_a_page_that_stays_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_bytes(b"kept")
    monkeypatch.setattr(measuring, "EVICT_SECONDS", 0.05)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)

    with pytest.raises(OSError, match="1 pages of data stayed in the page cache"):
        measuring.evict(tmp_path)


def test_many_saves_count_each_of_them(run: dict[str, Any]) -> None:
    sample = next(
        s for s in run["samples"] if (s["contender"], s["measure"]) == (OURS, "many-cached")
    )

    assert sample["value"] == sample["timed"]
    assert sample["repeats"] == run["workloads"]["W6"]["checkpoints"]


def _job(folder: pathlib.Path, **how: Any) -> Job:
    (folder / "scratch").mkdir()
    return Job(
        action="check",
        contender="numpy_savez",
        workload="W1",
        quick=True,
        fixture=str(folder / "fixture"),
        scratch=str(folder / "scratch"),
        **how,
    )


def test_a_process_that_lacks_memory_is_told_from_one_that_fails(
    tmp_path: pathlib.Path,
) -> None:
    with Processes(fork=False) as processes, pytest.raises(JobError) as caught:
        processes.work(_job(tmp_path, memory_nbytes=1 << 20))

    assert caught.value.kind == "out of memory"


def test_a_process_that_takes_too_long_is_ended(tmp_path: pathlib.Path) -> None:
    with Processes(fork=False) as processes, pytest.raises(JobError) as caught:
        processes.work(_job(tmp_path), seconds=0.02)

    assert caught.value.kind == "too slow"


class _NoMemory:
    """Answers for processes: savez has too little memory, the others are alike."""

    def __init__(self) -> None:
        self.measured: list[str] = []

    def work(self, job: Job, *, seconds: float = 0.0) -> dict[str, Any]:
        if job.contender == "numpy_savez":
            raise JobError("MemoryError", "out of memory")
        if job.action.startswith("check"):
            return {"nbytes": job.state.nbytes, "compared": []}
        self.measured.append(job.contender)
        return {"value": 1.0}


def test_a_peer_without_memory_does_not_stop_the_run(tmp_path: pathlib.Path) -> None:
    processes = _NoMemory()
    offers = {"offers": ["saver"], "only": [], "without": []}
    known = {n: {"name": n, "reads": n, **offers} for n in (OURS, "numpy_savez")}
    options = rounds.Options(
        quick=True, rounds=2, seed=1, folder=tmp_path, peer_rounds=2, workloads=("W4",)
    )
    bench = rounds._Bench(options, known, processes, lambda _: None)  # type: ignore[arg-type]

    bench.prepare()
    bench.measure()

    assert processes.measured == [OURS] * 4  # cached and durable saves, twice
    assert [(row["contender"], row["why"]) for row in bench.left_out] == [
        ("numpy_savez", "out of memory")
    ]
    assert bench.failures == []


def test_peers_take_part_in_some_rounds_ours_in_all(tmp_path: pathlib.Path) -> None:
    processes = _NoMemory()
    offers = {"offers": ["saver"], "only": [], "without": []}
    known = {n: {"name": n, "reads": n, **offers} for n in (OURS, "h5py_file")}
    options = rounds.Options(quick=True, rounds=3, seed=1, folder=tmp_path, workloads=("W4",))
    bench = rounds._Bench(options, known, processes, lambda _: None)  # type: ignore[arg-type]

    bench.measure()

    assert sorted(processes.measured) == [OURS] * 6 + ["h5py_file"] * 2


def test_no_sample_begins_when_the_time_is_up(tmp_path: pathlib.Path) -> None:
    processes = _NoMemory()
    known = {
        OURS: {"name": OURS, "reads": OURS, "offers": ["saver"], "only": [], "without": []}
    }
    options = rounds.Options(
        quick=True, rounds=9, seed=1, folder=tmp_path, seconds=0.0, workloads=("W4",)
    )
    bench = rounds._Bench(options, known, processes, lambda _: None)  # type: ignore[arg-type]

    bench.measure()

    assert processes.measured == [OURS] * 2  # the first round is whole


def test_peers_give_way_when_the_time_gets_short(tmp_path: pathlib.Path) -> None:
    processes = _NoMemory()
    offers = {"offers": ["saver"], "only": [], "without": []}
    known = {n: {"name": n, "reads": n, **offers} for n in (OURS, "h5py_file")}
    options = rounds.Options(
        quick=True, rounds=1, seed=1, folder=tmp_path, seconds=0.0, workloads=("W4",)
    )
    bench = rounds._Bench(options, known, processes, lambda _: None)  # type: ignore[arg-type]

    bench.measure()
    bench.prepare()

    assert processes.measured == [OURS] * 2
    assert [row["contender"] for row in bench.compared] == [OURS]
    assert {(row["contender"], row["why"]) for row in bench.left_out} == {
        ("h5py_file", "no time")
    }


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_one_other_bit_is_other_bits(dtype: Any) -> None:
    saved = {"a": np.zeros((3, 5), dtype), "b": np.full((), np.nan, dtype)}
    loaded = {path: array.copy() for path, array in saved.items()}
    checking._require_same(loaded, saved, "load")
    loaded["a"][2, 4] = -0.0

    with pytest.raises(AssertionError, match="load: a is not what was saved"):
        checking._require_same(loaded, saved, "load")


def test_a_contender_runs_where_its_library_is(tmp_path: pathlib.Path) -> None:
    environments.make(tmp_path / "jax", ["# a comment", f"{tmp_path}/absent"])

    pythons = environments.pythons(tmp_path)

    assert pythons == dict.fromkeys(
        ENVIRONMENTS["jax"], str(tmp_path / "jax" / "bin" / "python")
    )
    assert "absent' does not exist" in environments.not_installed(tmp_path)["h5py_file"]


def test_what_a_peer_could_not_do_stands_in_its_row(
    run: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    run["left_out"] = [
        {
            "workload": "W1", "measure": "load", "contender": "numpy_savez",
            "why": "out of memory", "reason": "MemoryError",
        }
    ]  # fmt: skip

    report = _report(run, tmp_path)

    assert "    numpy.savez             out of memory\n" in report
    assert "left out: W1 load, numpy.savez: out of memory: MemoryError" in report


def test_nothing_stays_on_the_disk(kept: pathlib.Path) -> None:
    assert list((kept.parent / "disk").iterdir()) == []


def test_a_missed_target_is_said_and_by_how_much(
    run: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    times = {OURS: 2.0, PEER: 1.0}
    for sample in run["samples"]:
        if (sample["workload"], sample["measure"]) == ("W1", "save-durable"):
            sample["value"] = times.get(sample["contender"], 1.0)

    report = _report(run, tmp_path)

    assert "W1 durable save, primed: 2.00x, ≤ 1.20x peer MISSED by 67 %" in report
    assert "W1 durable save, primed: 2.00x, ≤ 1.15x limit MISSED by 74 %" in report


def test_a_target_that_is_just_met_is_met(run: dict[str, Any], tmp_path: pathlib.Path) -> None:
    for sample in run["samples"]:
        if (sample["workload"], sample["measure"]) == ("W1", "load"):
            sample["value"] = 1.0

    report = _report(run, tmp_path)

    assert "W1 load into new arrays:" not in report
    assert "≤ 1.00x peer met by 0 %" in report


def test_a_failure_fails_the_run_and_is_told(
    run: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    failure = {"workload": "W1", "measure": "load", "contender": PEER, "reason": "a\nb"}
    run["failures"] = [failure]
    file = tmp_path / "failed.json"
    file.write_text(json.dumps(run), "utf-8")

    done = _bench("--from", file)

    assert done.returncode == 1
    assert f"FAILED: W1 load, {PEER}: b" in done.stdout


@pytest.fixture
def grown(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run of curves: seconds made up, a sample of each point for three contenders."""
    names = curves.workloads(quick=True, largest=1)
    samples = [
        {
            "workload": m.workload, "measure": m.key, "contender": name,
            "value": int(m.workload.partition("-")[2]) * factor,
        }
        for m in curves.measures(names)
        for name, factor in ((OURS, 0.003), (PEER, 0.002), ("limit_page_cache", 0.001))
    ]  # fmt: skip
    few = {name: run["contenders"][name] for name in FEW}
    return run | {"curves": True, "samples": samples, "contenders": few, "left_out": []}


def test_a_curve_has_a_row_for_each_point(
    grown: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    rows = _report(grown, tmp_path).splitlines()

    first = rows.index("open and list, over arrays of 1 KiB")
    assert " ".join(rows[first + 2].split()) == "10 30.00 ms 20.00 ms 10.00 ms 1.50 3.00"
    assert " ".join(rows[first + 3].split()) == "20 60.00 ms 40.00 ms 20.00 ms 1.50 3.00"
    assert rows[first + 4] == ""


def test_points_are_workloads_of_that_size() -> None:
    sizes = [workloads.workload(f"size-{mb}", quick=False).nbytes for mb in (10, 2500)]
    arrays = workloads.workload("arrays-1000", quick=False)
    saved = workloads.workload("run-100", quick=False).checkpoints

    assert [round(n / 1e6) for n in sizes] == [10, 2500]
    assert (len(arrays.shapes), arrays.nbytes, saved) == (1000, 1000 * 1024, 100)


@pytest.mark.parametrize("kind", ["bench", "bench-curves"])
def test_a_run_is_drawn(
    run: dict[str, Any], grown: dict[str, Any], tmp_path: pathlib.Path, kind: str
) -> None:
    pytest.importorskip("matplotlib")
    drawn = grown if kind == "bench-curves" else run

    _report(drawn | {"quick": False}, tmp_path, "--plots", tmp_path)

    first = (tmp_path / f"{kind}.svg").read_bytes()
    assert ET.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    _report(drawn | {"quick": False}, tmp_path, "--plots", tmp_path)
    assert (tmp_path / f"{kind}.svg").read_bytes() == first


def test_the_table_goes_between_the_marks(run: dict[str, Any], tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    begin, end = MARKS
    page.write_text(f"before\n{begin}\nanother table\n{end}\nafter\n", "utf-8")
    run["quick"] = False

    _report(run, tmp_path, "--readme", page)

    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{begin}\n| ")
    assert text.endswith(f"\n{end}\nafter\n")
    assert "another table" not in text
    assert "| open and list |" in text
    assert "Made by `make bench ARGS=--readme`" in text


def test_the_table_names_the_command_that_made_it() -> None:
    some = {"workloads": ["W3", "W1"], "contenders": CONTENDERS}

    assert readme.command(some) == "make bench ARGS='--readme --workloads W3,W1'"


def test_a_quick_run_never_reaches_a_page(kept: pathlib.Path, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(MARKS), "utf-8")

    done = _bench("--from", kept, "--readme", page)

    assert done.returncode == 2
    assert page.read_text("utf-8") == "\n".join(MARKS)


def test_a_page_without_marks_stays_as_it_is(
    run: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    page, file = tmp_path / "page.md", tmp_path / "full.json"
    page.write_text("no marks\n", "utf-8")
    file.write_text(json.dumps(run | {"quick": False}), "utf-8")

    done = _bench("--from", file, "--readme", page)

    assert done.returncode == 2
    assert "once each" in done.stderr
    assert page.read_text("utf-8") == "no marks\n"
