"""What is found out about machine, libraries and code, and what is left alone."""

from __future__ import annotations

import os
import pathlib
import platform
import sys
import types

import numpy as np
import pytest

from ckptfmt.checks import machine


def test_description_agrees_with_the_standard_library() -> None:
    found = machine.describe()

    assert found["python"] == {
        "version": platform.python_version(),
        "implementation": sys.implementation.name,
    }
    assert found["system"]["os"] == platform.system()  # type: ignore[index]
    assert found["system"]["machine"] == platform.machine()  # type: ignore[index]
    assert found["numpy"]["version"] == np.__version__  # type: ignore[index]
    assert found["cpu"]["count"] == os.cpu_count()  # type: ignore[index]
    assert found["distributions"]["numpy"] == np.__version__  # type: ignore[index]


CPUINFO_X86 = """processor\t: 0
model name\t: Some CPU @ 2.60GHz: fast
flags\t\t: fpu avx2 sse4_2 fma unheard_of
power management:

processor\t: 1
model name\t: Another CPU
flags\t\t: fpu
"""
CPUINFO_ARM = """processor\t: 0
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (CPUINFO_X86, "Some CPU @ 2.60GHz: fast", ["sse4_2", "fma", "avx2"]),
        (CPUINFO_ARM, "0x41/0xd40", ["asimd", "bf16", "sve"]),
        ("", None, None),
        ("garbage\x00\n:::\n", None, None),
    ],
)
def test_cpu_is_that_of_the_first_processor(
    monkeypatch: pytest.MonkeyPatch, text: str, model: str | None, features: list[str] | None
) -> None:
    monkeypatch.setattr(machine, "_read", lambda path, limit: text)

    cpu = machine._cpu()

    assert cpu["model"] == model
    assert cpu["features"] == features


def test_windows_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path, limit: "")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    assert machine._cpu()["model"] is None

    monkeypatch.setattr(platform, "system", lambda: "Windows")

    assert machine._cpu()["model"] == "Intel64 Family 6"


def test_a_numpy_that_only_prints_its_build_is_recorded_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(np, "show_config", lambda: None)

    expected = {"version": np.__version__, "blas": None, "blas_version": None, "simd": None}
    assert machine._numpy() == expected


@pytest.mark.parametrize(
    "config", [None, [], {"Build Dependencies": 3}, {"SIMD Extensions": {}}]
)
def test_a_numpy_with_another_report_is_recorded_without_it(
    monkeypatch: pytest.MonkeyPatch, config: object
) -> None:
    monkeypatch.setattr(np, "show_config", lambda mode: config)

    assert machine._numpy()["blas"] is None
    assert machine._numpy()["simd"] is None


def install(folder: pathlib.Path, name: str, metadata: bytes | None) -> None:
    place = folder / f"{name}.dist-info"
    place.mkdir(parents=True)
    if metadata is not None:
        (place / "METADATA").write_bytes(metadata)


def test_broken_distributions_are_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "good-1", b"Metadata-Version: 2.1\nName: Good.One\nVersion: 1.5\n")
    install(tmp_path, "empty-1", None)
    install(tmp_path, "nameless-1", b"Metadata-Version: 2.1\nVersion: 1.5\n")
    install(tmp_path, "versionless-1", b"Metadata-Version: 2.1\nName: versionless\n")
    install(tmp_path, "binary-1", b"Name: \xff\xfe\nVersion: \xff\n\x00")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert dict(machine._installed()) == {"good-one": "1.5"}


def test_the_distribution_that_an_import_would_find_counts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "x_y-1", b"Name: x_y\nVersion: 1\n")
    install(tmp_path / "b", "x_y-2", b"Name: X-Y\nVersion: 2\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])

    assert dict(machine._installed()) == {"x-y": "1"}


class Lazy(types.ModuleType):
    """A module that would import something as soon as it is asked for a name."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def test_frameworks_are_recorded_only_when_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert machine.imported() == {}

    torch = types.ModuleType("torch")
    torch.__version__ = type("TorchVersion", (str,), {})("2.6.0+cu124")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "jax", Lazy("jax"))
    monkeypatch.setitem(sys.modules, "keras", None)  # type: ignore[arg-type]  # import blocked

    found = machine.imported()

    assert found == {"torch": "2.6.0+cu124"}
    assert type(found["torch"]) is str


def test_reading_is_bounded_and_never_fails(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff")

    assert machine._read(tmp_path / "file", 2) == "ab"
    assert machine._read(tmp_path / "file", 9) == "abc\ufffd"
    assert machine._read(tmp_path / "absent", 9) == ""
    assert machine._read(tmp_path, 9) == ""
    assert machine._read("nul\0byte", 9) == ""
