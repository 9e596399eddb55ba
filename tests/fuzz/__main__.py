"""Fuzz the parsers of `ckptfmt.migrate` with coverage as the guide: `make fuzz`.

Each parser runs in a process of its own, from the corpus's files of its format: an error of
ours is the right answer, anything else ends the run with the input that caused it.

    python -m tests.fuzz [--runs N] [--only NAME …]      needs atheris
    python -m tests.fuzz --replay NAME FILE              an input once more, without atheris
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile

from tests.fuzz import targets


def main() -> int:
    """Run what the arguments ask for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs for each parser")
    parser.add_argument("--only", action="append", choices=sorted(targets.TARGETS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--replay", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    if args.replay:
        name, file = args.replay
        targets.TARGETS[name].run(pathlib.Path(file).read_bytes())
        return 0
    if args.child:
        _child(args.child, args.runs)
        return 0
    found: list[str] = []
    for name in args.only or targets.TARGETS:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--child",
            name,
            "--runs",
            str(args.runs),
        ]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, check=False,
                env={**targets.environment(), "PYTHONPATH": str(targets.ROOT)},
            )  # fmt: skip
            inputs = [file for file in pathlib.Path(folder).glob("*-*") if file.is_file()]
            for file in inputs:
                kept = pathlib.Path(tempfile.gettempdir()) / f"fuzz-{name}-{file.name}"
                kept.write_bytes(file.read_bytes())
                print(f"    kept: python -m tests.fuzz --replay {name} {kept}")
        last = [line for line in done.stderr.splitlines() if "Done" in line or "ERROR" in line]
        print(
            f"{name}: status {done.returncode}; {' '.join(last) or done.stderr[-500:]}",
            flush=True,
        )
        if done.returncode:
            print("\n".join(done.stdout.splitlines()[-25:]))
            found.append(name)
    print("failed: " + ", ".join(found) if found else "no finding")
    return 1 if found else 0


def _child(name: str, runs: int) -> None:
    import atheris

    target = targets.TARGETS[name]
    with atheris.instrument_imports(include=["ckptfmt.migrate"]):
        target.load()
    seeds = pathlib.Path(tempfile.mkdtemp(prefix="seeds-"))
    for number, data in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(data)

    def once(data: bytes) -> None:
        target.run(data)

    longest = max((len(data) for data in target.seeds()), default=4096)
    options = [f"-runs={runs}", f"-max_len={longest + 64}", "-timeout=60",
               "-rss_limit_mb=3000", "-print_final_stats=0"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds)], once)
    with contextlib.suppress(KeyboardInterrupt):
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
