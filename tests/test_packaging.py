"""The wheel: what is in it, and that a user who installs it gets what the README shows.

The build needs no network. The tests marked `wheel` install the wheel and the dependencies of
the core, and nothing else, into an empty environment: `-m "not wheel"` leaves them out.
"""

from __future__ import annotations

import email.message
import email.parser
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from typing import Any, Final

import pytest

ROOT: Final = pathlib.Path(__file__).parents[1]
PACKAGES: Final = {"ckptfmt", "ckptfmt_torch", "ckptfmt_keras"}
CORE: Final = {
    "fsspec", "ml_dtypes", "msgpack", "numpy", "safetensors", "xxhash", "zstandard",
}  # fmt: skip
EXTRAS: Final = {
    "all", "azure", "cli", "dev", "gcs", "h5", "http", "keras", "plot", "s3", "sftp", "test",
    "test-remote", "torch",
}  # fmt: skip

# Modules that only an extra makes importable: the command line loads them when it is there.
NEED_AN_EXTRA: Final = {
    **dict.fromkeys(
        ("ckptfmt.cli.canvas", "ckptfmt.cli.panels", "ckptfmt.cli.sheet"), "matplotlib"
    ),
    "ckptfmt.cli.rich_screen": "rich",
    "ckptfmt.migrate.h5walk": "h5py",  # runs in a process of its own
    "ckptfmt_keras": "keras",
    "ckptfmt_torch": "torch",
}

# Imports every module there is; says which need a distribution that only an extra brings.
WALK: Final = """
import importlib, importlib.util, json, pkgutil, sys
import ckptfmt
names = [m.name for m in pkgutil.walk_packages(ckptfmt.__path__, "ckptfmt.")]
names = [n for n in names if not n.startswith("ckptfmt.testing") and not n.endswith("__main__")]
names += ["ckptfmt_torch", "ckptfmt_keras"]
missing, files = {}, []
for name in names:
    files.append(importlib.util.find_spec(name).origin)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing[name] = error.name
print(json.dumps({"names": names, "files": files, "missing": missing}))
"""


def _run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return pyproject.toml's [project] table."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project: dict[str, Any] = table["project"]
    return project


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a wheel built from the source distribution, as a release is."""
    pytest.importorskip("build", reason="the package `build` makes the wheel")
    pytest.importorskip("hatchling", reason="the build back end")
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: pathlib.Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


@pytest.fixture(scope="module")
def user(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the Python of an environment that holds the wheel and what it requires."""
    home = tmp_path_factory.mktemp("user")
    # --without-pip: the environment ends with nothing that we did not ask for.
    _run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    _run(*pip, "install", "--quiet", "--disable-pip-version-check", wheel, cwd=home)
    return python


def test_floors_are_the_ones_that_are_tested(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    required = project["dependencies"] + extras["cli"] + extras["plot"]
    floors = {entry.replace(">=", "==") for entry in required}
    lines = (ROOT / "constraints" / "oldest.txt").read_text("utf-8").splitlines()

    assert {line for line in lines if line and not line.startswith("#")} == floors


def test_core_dependencies_are_pinned_by_decision(project: dict[str, Any]) -> None:
    assert {entry.partition(">=")[0] for entry in project["dependencies"]} == CORE
    assert set(project["optional-dependencies"]) == EXTRAS
    assert project["requires-python"] == ">=3.11"


def test_extra_all_holds_every_extra_of_a_user(project: dict[str, Any]) -> None:
    (entry,) = project["optional-dependencies"]["all"]

    named = set(entry.removeprefix("ckptfmt[").removesuffix("]").split(","))

    assert named == EXTRAS - {"all", "dev", "test", "test-remote"}


def test_adapters_is_a_search_root_and_not_a_package() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists()
    folders = {path.name for path in (ROOT / "adapters").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == PACKAGES - {"ckptfmt"}


def test_wheel_has_our_packages_at_top_level_and_nothing_else(contents: list[str]) -> None:
    tops = {name.partition("/")[0] for name in contents}

    assert {name for name in tops if not name.endswith(".dist-info")} == PACKAGES
    assert len(tops) == len(PACKAGES) + 1


def test_wheel_says_that_it_is_typed(contents: list[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(contents)


def test_wheel_holds_every_module_and_no_other_file(contents: list[str]) -> None:
    tops = [ROOT / "ckptfmt", *(ROOT / "adapters").glob("ckptfmt_*")]
    sources = {
        file.relative_to(top.parent).as_posix()
        for top in tops
        for file in top.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    assert {name for name in contents if ".dist-info/" not in name} == sources
    assert {pathlib.PurePath(name).suffix for name in sources} == {".py", ".typed"}


def test_wheel_metadata_is_complete(
    metadata: email.message.Message, project: dict[str, Any], contents: list[str]
) -> None:
    required = [
        entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry
    ]

    assert {re.split(r"[^\w-]", entry)[0].replace("-", "_") for entry in required} == CORE
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)
    assert metadata["Requires-Python"] == project["requires-python"]


def test_version_is_written_once(metadata: email.message.Message) -> None:
    source = (ROOT / "ckptfmt" / "__init__.py").read_text("utf-8")
    written = re.findall(r'^__version__(?:: Final)? = "([^"]+)"$', source, re.MULTILINE)

    assert written == [metadata["Version"]]


@pytest.mark.wheel
def test_core_imports_without_any_extra(user: pathlib.Path) -> None:
    answer = json.loads(_run(user, "-I", "-c", WALK, cwd=user.parent))

    assert all(pathlib.Path(file).is_relative_to(user.parents[1]) for file in answer["files"])
    assert "ckptfmt.errors" in answer["names"]
    assert answer["missing"] == NEED_AN_EXTRA


@pytest.mark.wheel
def test_command_line_works_without_any_extra(user: pathlib.Path) -> None:
    for command in ([user.parent / "ckptfmt"], [user, "-I", "-m", "ckptfmt"]):
        assert "usage" in _run(*command, "--help", cwd=user.parent).lower()


@pytest.mark.wheel
def test_readme_example_runs_where_only_the_wheel_is(
    user: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    example = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert example, "the README shows no example"
    script = tmp_path / "example.py"
    script.write_text(example.group(1), encoding="utf-8")

    # -I: neither the working folder nor PYTHON* variables lend it a module.
    _run(user, "-I", script, cwd=tmp_path)
