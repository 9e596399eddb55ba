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

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


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


def git(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def head(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object] | None:
    monkeypatch.chdir(folder)
    return machine._git()


@pytest.mark.parametrize(
    ("files", "commit", "branch"),
    [
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": SHA + "\n"}, SHA, "main"),
        ({"HEAD": "ref: refs/heads/a/b\n", "refs/heads/a/b": SHA}, SHA, "a/b"),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "packed-refs": f"# pack-refs with: peeled\n{OTHER} refs/heads/main2\n"
                f"{OTHER} x/refs/heads/main\n{SHA} refs/heads/main\n^{OTHER}\n",
            },
            SHA,
            "main",
        ),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "refs/heads/main": SHA,
                "packed-refs": f"{OTHER} refs/heads/main\n",
            },
            SHA,
            "main",
        ),
        ({"HEAD": SHA + "\n"}, SHA, None),
        ({"HEAD": "a" * 64 + "\n"}, "a" * 64, None),
        ({"HEAD": "ref: refs/heads/unborn\n"}, None, "unborn"),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": "secret"}, None, "main"),
        ({"HEAD": "ref: refs/heads/../../../secret\n"}, None, None),
        ({"HEAD": "ref: /etc/hostname\n"}, None, None),
        ({"HEAD": "nonsense"}, None, None),
        ({"HEAD": "\xff\x00"}, None, None),
    ],
)
def test_commit_is_read_from_the_repository(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    commit: str | None,
    branch: str | None,
) -> None:
    git(tmp_path / ".git", files)
    (tmp_path / "secret").write_text(SHA)

    found = head(tmp_path, monkeypatch)

    assert found == {"commit": commit, "branch": branch, "dirty": None}


def test_commit_is_found_from_a_subfolder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path / ".git", {"HEAD": SHA})
    (tmp_path / "a/b").mkdir(parents=True)

    found = head(tmp_path / "a/b", monkeypatch)

    assert found is not None
    assert found["commit"] == SHA


@pytest.mark.parametrize("relative", [False, True])
def test_commit_of_a_worktree_is_found_in_the_common_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    git(tmp_path / "main/.git", {"HEAD": OTHER, "refs/heads/topic": SHA})
    git(
        tmp_path / "main/.git/worktrees/tree",
        {"HEAD": "ref: refs/heads/topic\n", "commondir": "../..\n"},
    )
    place = "../main" if relative else f"{tmp_path}/main"
    git(tmp_path / "tree", {".git": f"gitdir: {place}/.git/worktrees/tree\n"})

    found = head(tmp_path / "tree", monkeypatch)

    assert found == {"commit": SHA, "branch": "topic", "dirty": None}


def test_no_repository_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert head(tmp_path, monkeypatch) is None


def test_a_removed_working_directory_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert machine._git() is None


def test_a_pipe_is_not_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git/HEAD")

    assert head(tmp_path, monkeypatch) is None


def test_reading_is_bounded_and_never_fails(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff")

    assert machine._read(tmp_path / "file", 2) == "ab"
    assert machine._read(tmp_path / "file", 9) == "abc\ufffd"
    assert machine._read(tmp_path / "absent", 9) == ""
    assert machine._read(tmp_path, 9) == ""
    assert machine._read("nul\0byte", 9) == ""
