"""The environment record, without secrets, and its comparison."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ckptfmt import leaves
from ckptfmt.checks import environment, machine
from ckptfmt.checks.changes import lookup, normalised
from ckptfmt.checks.environment import Finding, Recorder, compare

SHA = "0123456789abcdef0123456789abcdef01234567"
ROOT = pathlib.Path(environment.__file__).parents[2]


def leaf_types(value: object) -> Iterator[type]:
    if type(value) is dict:
        for key, item in value.items():
            assert type(key) is str
            yield from leaf_types(item)
    elif type(value) is list:
        for item in value:
            yield from leaf_types(item)
    else:
        yield type(value)


def test_record_is_plain_data_with_every_section() -> None:
    record = environment.capture()

    assert set(record) == {
        "python", "system", "cpu", "accelerator", "numpy", "distributions", "git", "frameworks",
        "variables", "argv", "extra",
    }  # fmt: skip
    assert set(leaf_types(record)) <= set(leaves.PLAIN_TYPES)
    assert json.loads(json.dumps(record)) == record


def test_the_specification_names_what_is_recorded() -> None:
    clause = next(
        line
        for line in (ROOT / "spec/v1.md").read_text("utf-8").splitlines()
        if line.startswith("**6.8.4**")
    )

    assert set(re.findall(r"`(\w+)`", clause)) - {"environment"} == set(environment.capture())


def test_second_capture_finds_nothing_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    first = recorder.capture()

    def fail(*args: object) -> object:
        raise AssertionError

    monkeypatch.setattr(machine, "describe", fail)
    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr(os, "listdir", fail)

    assert recorder.capture() == first


def test_recorders_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Recorder().capture()
    monkeypatch.setattr(machine, "describe", lambda: {"python": {"version": "0"}})

    assert Recorder().capture()["python"] == {"version": "0"}
    assert before["python"] != {"version": "0"}


def test_records_share_nothing_with_the_recorder() -> None:
    recorder = Recorder()
    record: Any = recorder.capture()
    expected = copy.deepcopy(record)

    record["distributions"].clear()
    record["cpu"]["features"] = "changed"
    record["argv"].append("changed")
    record["variables"]["changed"] = "1"

    assert recorder.capture() == expected


def test_what_changes_is_captured_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sys, "argv", ["a.py", "--lr", "1"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    first: Any = recorder.capture()
    monkeypatch.setattr(sys, "argv", ["b.py"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    second: Any = recorder.capture()

    assert (first["argv"], first["variables"]["OMP_NUM_THREADS"]) == (
        ["a.py", "--lr", "1"],
        "3",
    )
    assert second["argv"] == ["b.py"]
    assert "OMP_NUM_THREADS" not in second["variables"]
    assert second["variables"]["KERAS_BACKEND"] == "jax"


def test_commit_is_that_of_the_first_capture(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text(SHA)
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    recorder.capture()
    (tmp_path / ".git/HEAD").write_text("f" * 40)

    assert recorder.capture()["git"] == {"commit": SHA, "branch": None, "dirty": None}


def test_extra_is_kept_as_a_copy() -> None:
    extra = {"torch": {"deterministic": True}}

    record = environment.capture(extra=extra)
    extra["torch"]["deterministic"] = False

    assert record["extra"] == {"torch": {"deterministic": True}}


def test_missing_argv_is_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "argv")

    assert environment.capture()["argv"] == []


HOSTILE = """
import json, sys

def refuse(event, args):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec"):
        raise SystemExit(f"started a process: {args}")

from ckptfmt.checks import environment
before = set(sys.modules)
sys.addaudithook(refuse)
record = environment.capture()
assert not {"torch", "jax", "tensorflow", "keras"} & set(sys.modules)
print(json.dumps(record))
"""


def test_a_hostile_process_gives_away_no_secret() -> None:
    secret = "hunter2"
    variables = {
        b"PATH": os.environb.get(b"PATH", b""),
        b"HF_TOKEN": secret.encode(),
        b"AWS_SECRET_ACCESS_KEY": secret.encode(),
        b"OMP_NUM_THREADS_SECRET": secret.encode(),
        b"omp_num_threads": secret.encode(),
        b"XLA_FLAGS": b"--xla_x=1 --url=https://u:hunter2@host --token hunter2",
        b"TF_XLA_FLAGS": b"\xff\xfe --password=hunter2",
        b"JAX_PLATFORMS": b"cpu\xff",
        b"OMP_NUM_THREADS": b"4",
    }
    arguments = [
        b"--password", secret.encode(), b"--token=" + secret.encode(), b"s3://a:hunter2@b/runs",
        b"\xff\xfe", b'{"api_key": "hunter2"}', b"--lr", b"0.1",
    ]  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, *arguments],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr.decode()
    assert b"hunter2" not in done.stdout
    record = json.loads(done.stdout)
    assert record["variables"] == {
        "JAX_PLATFORMS": "cpu\\udcff",
        "OMP_NUM_THREADS": "4",
        "TF_XLA_FLAGS": "\\udcff\\udcfe --password=***",
        "XLA_FLAGS": "--xla_x=1 --url=https://host --token ***",
    }
    assert record["argv"] == [
        "-c", "--password", "***", "--token=***", "s3://b/runs", "\\udcff\\udcfe",
        '{"api_key": ***', "--lr", "0.1",
    ]  # fmt: skip


def record(**sections: object) -> dict[str, Any]:
    base: dict[str, Any] = {
        "python": {"version": "3.11.7", "implementation": "cpython"},
        "system": {
            "os": "Linux", "release": "6", "machine": "x86_64", "libc": "glibc 2.36",
            "distribution": "Debian",
        },
        "cpu": {"model": "A", "features": ["avx2"], "count": 8, "usable": 4},
        "numpy": {"version": "2.0.0", "blas": "openblas", "blas_version": "1", "simd": []},
        "distributions": {"numpy": "2.0.0", "torch": "2.3.0", "left-pad": "1.0"},
        "git": {"commit": SHA, "branch": "main", "dirty": None},
        "frameworks": {"torch": "2.3.0"},
        "variables": {"OMP_NUM_THREADS": "4"},
        "argv": ["train.py"],
        "extra": {},
    }  # fmt: skip
    return {**base, **sections}


def changed(section: str, key: str, value: object) -> dict[str, Any]:
    result = record()
    result[section] = {**result[section], key: value}
    return result


def test_equal_environments_have_no_findings() -> None:
    assert compare(record(), record()) == []


def test_this_process_does_not_differ_from_itself() -> None:
    saved = environment.capture()
    loaded = json.loads(json.dumps(Recorder().capture()))

    assert compare(saved, loaded) == []


def test_what_differs_between_any_two_runs_is_no_finding() -> None:
    later = record(argv=["resume.py"], extra={"a": 1})
    later["git"]["branch"] = "other"
    later["cpu"]["count"] = 9

    assert compare(record(), later) == []


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("python.implementation", "pypy", "warning"),
        ("system.os", "Darwin", "warning"),
        ("system.machine", "aarch64", "warning"),
        ("system.release", "7", "info"),
        ("system.libc", "musl", "info"),
        ("system.distribution", "Alpine", "info"),
        ("cpu.model", "B", "info"),
        ("cpu.features", ["avx2", "avx512f"], "info"),
        ("cpu.usable", 2, "info"),
        ("numpy.blas", "mkl", "warning"),
        ("numpy.blas_version", "2", "info"),
        ("numpy.simd", ["AVX2"], "info"),
        ("git.commit", "f" * 40, "info"),
    ],
)
def test_each_difference_is_one_graded_finding(name: str, value: object, severity: str) -> None:
    section, key = name.split(".")

    (found,) = compare(record(), changed(section, key, value))

    assert (found.severity, found.name) == (severity, name)
    assert (found.saved, found.now) == (record()[section][key], value)
    assert len(found.reason) > 10


@pytest.mark.parametrize(
    "section",
    [
        "python",
        "system",
        "cpu",
        "accelerator",
        "numpy",
        "distributions",
        "frameworks",
        "git",
        "variables",
    ],
)
@pytest.mark.parametrize("absent", [None, {}, 3, ["x"], {"unknown": 1}, {1: 2}])
def test_what_one_side_did_not_record_is_no_difference(section: str, absent: object) -> None:
    partial = record(**{section: absent})
    if section in ("variables", "distributions"):  # a dict of any names would be a record
        del partial[section]

    assert compare(partial, record()) == []
    assert compare(record(), partial) == []


@pytest.mark.parametrize("garbage", [3, "x", [1], b"", {"python": 1, "distributions": [1, 2]}])
def test_garbage_is_no_error(garbage: object) -> None:
    compare(garbage, record())
    compare(record(), garbage)


@pytest.mark.parametrize("absent", [None, {}, 3])
def test_a_checkpoint_without_a_record_says_so(absent: object) -> None:
    (found,) = compare(absent, record())

    assert (found.severity, found.name) == ("info", "environment")
    assert "no record of the environment" in found.reason


@pytest.mark.parametrize(
    ("old", "new", "severity"),
    [
        ("2.2.0", "2.3.0", "info"),
        ("2.3.0", "2.3.1", "info"),
        ("4.1", "3.9", "warning"),
        ("0.4.9", "0.4.30", "info"),
        ("0.4.30", "0.5.0", "warning"),
        ("2.3.0", "2.3.0+cu121", "info"),
        ("nightly-1", "nightly-2", "warning"),
    ],
)
def test_versions_without_a_known_change_are_graded_by_distance(
    old: str, new: str, severity: str
) -> None:
    saved = record(distributions={"scipy": old})
    now = record(distributions={"scipy": new})

    (found,) = compare(saved, now)

    assert (found.severity, found.name) == (severity, "scipy")
    assert (found.saved, found.now) == (old, new)
    assert "without a known change on record" in found.reason


def test_known_changes_carry_their_reason_action_and_source() -> None:
    saved = record(distributions={"torch": "2.0.1"}, frameworks={"torch": "2.0.1"})
    now = record(distributions={"torch": "2.6.0"}, frameworks={})

    findings = compare(saved, now)

    rows = lookup("torch", "2.0.1", "2.6.0")
    assert [found.severity for found in findings] == ["warning", "info"]
    assert {found.name for found in findings} == {"torch"}
    for row in rows:
        assert any(
            row.what in f.reason and row.action in f.reason and row.source in f.reason
            for f in findings
        )


def test_python_is_a_library_too() -> None:
    (found,) = compare(record(), changed("python", "version", "3.12.0"))

    assert (found.severity, found.name) == ("info", "python")


def test_the_imported_version_counts_before_the_installed_one() -> None:
    saved = record(distributions={"torch": "2.3.0"}, frameworks={"torch": "2.2.0"})

    (found,) = compare(saved, record())

    assert (found.saved, found.now) == ("2.2.0", "2.3.0")


@pytest.mark.parametrize("installed", ["tensorflow", "tensorflow-cpu", "tensorflow_macos"])
def test_an_import_that_has_not_happened_yet_is_no_difference(installed: str) -> None:
    """The save had imported it; whoever looks now has not, and may have another build."""
    saved = record(
        distributions={"tensorflow-cpu": "2.21.0"}, frameworks={"tensorflow": "2.21.0"}
    )
    now = record(distributions={installed: "2.21.0"}, frameworks={})

    assert compare(saved, now) == []


def test_a_local_part_of_a_version_is_compared_with_one() -> None:
    """`torch.__version__` may say more than the name that pip knows."""
    saved = record(distributions={"torch": "2.3.0"}, frameworks={"torch": "2.3.0+cu121"})

    assert compare(saved, record(distributions={"torch": "2.3.0"}, frameworks={})) == []


def test_known_changes_of_a_build_are_those_of_its_library() -> None:
    saved = record(distributions={"tensorflow-cpu": "2.8.0"}, frameworks={})
    (found,) = compare(saved, record(distributions={"tensorflow-cpu": "2.9.0"}, frameworks={}))

    assert (found.name, found.severity) == ("tensorflow", "warning")
    assert "oneDNN" in found.reason


def test_spelling_of_a_distribution_is_no_difference() -> None:
    saved = record(distributions={"Scikit_Learn": "1.5"})
    now = record(distributions={"scikit-learn": "1.5"})

    assert compare(saved, now) == []


@pytest.mark.parametrize(
    ("frameworks", "severity"), [({}, "info"), ({"jax": "0.5"}, "warning")]
)
def test_a_library_that_is_absent_matters_if_it_was_used(
    frameworks: dict[str, str], severity: str
) -> None:
    saved = record(distributions={"jax": "0.5"}, frameworks=frameworks)

    (found,) = compare(saved, record(distributions={"pip": "1"}, frameworks={}))

    assert (found.severity, found.name, found.now) == (severity, "jax", None)
    assert found.change() == "jax was '0.5' when saved and is absent here"


@pytest.mark.parametrize(
    ("backend", "severity"), [("torch", "info"), ("tensorflow", "warning")]
)
@pytest.mark.parametrize("here", ["2.9.0", None])
def test_what_keras_imported_and_did_not_compute_with_is_no_warning(
    backend: str, severity: str, here: str | None
) -> None:
    """It imports TensorFlow where that is installed, on every backend."""
    saved = record(
        distributions={"tensorflow": "2.8.0"}, frameworks={"tensorflow": "2.8.0"},
        extra={"keras": {"backend": backend}},
    )  # fmt: skip
    now = record(
        distributions={"pip": "1"} if here is None else {"tensorflow": here}, frameworks={}
    )

    (found,) = [one for one in compare(saved, now) if one.name == "tensorflow"]

    assert (found.severity, found.now) == (severity, here)


def test_a_library_that_was_not_there_is_no_finding() -> None:
    now = record()
    now["distributions"] = {**now["distributions"], "jax": "0.5", "other": "1"}

    assert compare(record(), now) == []


def test_other_distributions_are_summed_up_and_bounded() -> None:
    saved = record(distributions={f"p{i:03}": "1" for i in range(50)})
    now = record(distributions={f"p{i:03}": "2" for i in range(1, 50)})

    (found,) = compare(saved, now)

    assert (found.severity, found.name) == ("info", "distributions")
    assert found.reason == "50 other distributions differ, 20 of them shown"
    assert found.saved == {f"p{i:03}": "1" for i in range(20)}
    assert found.now == {"p000": None, **{f"p{i:03}": "2" for i in range(1, 20)}}


@pytest.mark.parametrize(
    ("name", "saved", "now", "severity"),
    [
        ("OMP_NUM_THREADS", "4", "8", "info"),
        ("KERAS_BACKEND", "jax", "torch", "warning"),
        ("NVIDIA_TF32_OVERRIDE", None, "0", "warning"),
        ("PYTHONHASHSEED", "0", None, "info"),
    ],
)
def test_environment_variables_are_compared_set_or_not(
    name: str, saved: str | None, now: str | None, severity: str
) -> None:
    one = record(variables={name: saved} if saved is not None else {})
    other = record(variables={name: now} if now is not None else {})

    (found,) = compare(one, other)

    assert found == Finding(
        severity=severity,  # type: ignore[arg-type]
        name=name,
        saved=saved,
        now=now,
        reason=found.reason,
    )


def test_the_most_serious_come_first_then_by_name() -> None:
    now = record(variables={"KERAS_BACKEND": "jax", "OMP_NUM_THREADS": "5"})
    now["cpu"]["model"] = "B"
    now["system"]["os"] = "Darwin"

    assert [found.name for found in compare(record(), now)] == [
        "KERAS_BACKEND", "system.os", "OMP_NUM_THREADS", "cpu.model",
    ]  # fmt: skip


def test_installed_distributions_are_those_that_python_names() -> None:
    expected: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = normalised(distribution.metadata["Name"])
        expected.setdefault(name, distribution.metadata["Version"])

    assert machine.describe()["distributions"] == dict(sorted(expected.items()))


@pytest.mark.parametrize(
    "text",
    [
        "Metadata-Version: 2.1\nName: a-b\nVersion: 1.0\n\nName: c\nVersion: 2\n",
        "VERSION:1.0  \r\nname: a-b\r\n\r\nVersion: 2\r\n",
        "Name: a-b\nName: c\nSummary: x\n  Version: 3\nVersion: 1.0",
    ],
)
def test_name_and_version_stand_in_the_head_of_metadata(text: str) -> None:
    assert machine.metadata_fields(text) == {"name": "a-b", "version": "1.0"}


def test_metadata_without_a_name() -> None:
    assert machine.metadata_fields("") == {}
    assert machine.metadata_fields("Summary: x\n\nName: a\n") == {}
