"""Environments for contenders that cannot live in one: `python -m tests.bench.environments F`.

Makes one in the folder F for each file in `requirements/`, and installs its lines one by one:
what cannot be installed is left out, and the report says so.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Final

from tests.bench.contract import ENVIRONMENTS

LISTS: Final = pathlib.Path(__file__).with_name("requirements")
LEFT_OUT: Final = "not-installed.json"  # requirement → what pip said last


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    for name in ENVIRONMENTS:
        make(folder / name, (LISTS / f"{name}.txt").read_text("utf-8").splitlines())


def make(place: pathlib.Path, requirements: list[str]) -> None:
    """Make an environment and install what can be installed."""
    made = [sys.executable, "-m", "venv", str(place)]
    if subprocess.run(made, check=False, capture_output=True).returncode:
        # A system Python may come without ensurepip; its own pip can fill the environment.
        subprocess.run([*made, "--clear", "--without-pip"], check=True)
    failed: dict[str, str] = {}
    for line in requirements:
        if not line or line.startswith("#"):
            continue
        pip = [sys.executable, "-m", "pip", "--python", str(_python(place)), "install", "-q"]
        done = subprocess.run(
            [*pip, *line.split()], check=False, capture_output=True, text=True
        )
        if done.returncode:
            failed[line] = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"not installed in {place.name}: {line}: {failed[line]}", file=sys.stderr)
    (place / LEFT_OUT).write_text(json.dumps(failed, indent=1) + "\n", "utf-8")


def pythons(folder: pathlib.Path | None) -> dict[str, str]:
    """Return the Python of each contender that has an environment there."""
    return {
        contender: str(_python(folder / name))
        for name, contenders in ENVIRONMENTS.items()
        if folder is not None and _python(folder / name).exists()
        for contender in contenders
    }


def not_installed(folder: pathlib.Path | None) -> dict[str, str]:
    """Return what was said when an environment was filled, for each of its contenders."""
    found = {}
    for name, contenders in ENVIRONMENTS.items():
        file = None if folder is None else folder / name / LEFT_OUT
        if file is not None and file.exists():
            failed = json.loads(file.read_text("utf-8"))
            words = "; ".join(f"{line}: {why}" for line, why in failed.items())
            found.update(dict.fromkeys(contenders, words) if words else {})
    return found


def _python(place: pathlib.Path) -> pathlib.Path:
    return (place / "bin" / "python").absolute()


if __name__ == "__main__":
    main()
