"""Fuzz the parsers of `ckptfmt.migrate` with coverage as the guide: `make fuzz`.

Each parser runs in a process of its own, from the corpus's files of its format: an error of
ours is the right answer, anything else is a finding, kept as a file. libhdf5 alone may hang or
crash: a user's process asks another one, and so does the replay that decides.

    python -m tests.fuzz [--runs N] [--seed N] [--only NAME …]   needs atheris
    python -m tests.fuzz --replay NAME FILE              an input once more, without atheris
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from tests.fuzz import targets

_COUNT: Final = "count"  # file with the number of inputs that were run
_HANG_SECONDS: Final = {"hdf5": 10}  # that one input may take
_ENOUGH: Final = 60
_KINDS: Final = "crash-*", "timeout-*", "oom-*", "leak-*"  # libFuzzer's names for inputs


def main() -> int:
    """Run what the arguments ask for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs for each parser")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--only", action="append", choices=sorted(targets.TARGETS))
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--replay", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    if args.replay:
        name, file = args.replay
        targets.TARGETS[name].run(pathlib.Path(file).read_bytes())
        return 0
    if args.child:
        _child(args.child[0], pathlib.Path(args.child[1]), args.runs, args.seed)
        return 0
    print(f"seed {args.seed}", flush=True)
    found = [name for name in args.only or targets.TARGETS if _fuzz(name, args.runs, args.seed)]
    print("failed: " + ", ".join(found) if found else "no finding")
    return 1 if found else 0


def _fuzz(name: str, runs: int, seed: int) -> bool:
    """Run one parser over so many inputs; tell whether there was a finding."""
    began, done, ended = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        seeds = targets.TARGETS[name].seeds()
        (here / "seeds").mkdir()
        for number, data in enumerate(seeds):
            (here / "seeds" / f"{number}").write_bytes(data)
        for turn in itertools.count(seed):
            known = len(list((here / "seeds").iterdir()))
            (here / _COUNT).write_text("0")
            child = _python(here, "--child", name, folder, "--seed", turn, "--runs",
                            runs - done + (known if done else 0))  # fmt: skip
            new = int((here / _COUNT).read_text()) - (known if done else 0)
            done += max(new, 1)  # what is known is run again at each start, and not counted
            bad = [file for kind in _KINDS for file in here.glob(kind)]
            finding = (child.returncode and not bad) or any(_is_finding(name, f) for f in bad)
            ended += len(bad)
            if done >= runs or finding:
                break
            for file in bad:
                file.unlink()
    seconds = time.monotonic() - began
    print(f"{name}: {done} inputs from {len(seeds)} seeds in {seconds:.0f} s"
          + (f"; {ended} ended libhdf5, an error of ours each" if ended and not finding else "")
          + ("; a FINDING" if finding else ""), flush=True)  # fmt: skip
    if finding:
        print(child.stdout[-2000:], child.stderr[-2000:], sep="\n", flush=True)
    return bool(finding)


def _is_finding(name: str, file: pathlib.Path) -> bool:
    """Tell whether an input that ended the fuzzer is wrong for a user, too; keep it then."""
    replay = name in _HANG_SECONDS and _python(file.parent, "--replay", name, file)
    if replay and not replay.returncode:
        return False
    kept = pathlib.Path(tempfile.gettempdir()) / f"fuzz-{name}-{file.name}"
    kept.write_bytes(file.read_bytes())
    print(f"    kept: python -m tests.fuzz --replay {name} {kept}")
    return True


def _python(folder: pathlib.Path, *args: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(targets.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *map(str, args)],
        capture_output=True, text=True, errors="replace", cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def _child(name: str, folder: pathlib.Path, runs: int, seed: int) -> None:
    import atheris

    target = targets.TARGETS[name]
    with atheris.instrument_imports(include=["ckptfmt.migrate"]):
        target.load()
        if target.reader == "hdf5":
            from tests.fuzz import inside

            inside.install()
    longest = max((len(data) for data in target.seeds()), default=4096)
    with open(folder / _COUNT, "r+b", buffering=0) as counted:
        numbers = itertools.count(1)

        def once(data: bytes) -> None:
            counted.seek(0)
            counted.write(b"%d" % next(numbers))
            target.run(data)

        _run(
            atheris, once, f"-runs={runs}", f"-seed={seed}", f"-max_len={longest + 64}",
            f"-timeout={_HANG_SECONDS.get(name, _ENOUGH)}", "-rss_limit_mb=3000",
            f"-artifact_prefix={folder}/", str(folder / "seeds"),
        )  # fmt: skip


def _run(atheris: object, once: object, *options: str) -> None:
    arguments: Sequence[str] = [sys.argv[0], *options]
    atheris.Setup(arguments, once)  # type: ignore[attr-defined]
    with contextlib.suppress(KeyboardInterrupt):
        atheris.Fuzz()  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
