"""One contender does one thing once, in a process of its own: a job in, a result out.

A job is a line of JSON on standard input. The answer is two lines of JSON on standard output:
the process that does the job, so that it can be watched, then the result. With `--fork` the
process stays, with the contender's library loaded, and forks for each further job.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from tests.bench import actions, checking, machine
from tests.bench.contract import CONTENDERS, FUNCTIONS
from tests.bench.job import FAILED, OUT_OF_MEMORY, WRONG, Job, Result

# How the libraries say it that have no exception of their own for it.
NO_MEMORY: Final = (
    "not enough memory", "Cannot allocate memory", "RESOURCE_EXHAUSTED", "bad_alloc",
    "can't allocate", "failed to map segment",
)  # fmt: skip
ACTIONS: Final[dict[str, Callable[[Job, Any], Result]]] = {
    "check": checking.check,
    "check_second": checking.check_second,
    "save": actions.save,
    "second_save": actions.second_save,
    "load": actions.load,
    "load_mmap": actions.load_mmap,
    "load_and_read": actions.load_and_read,
    "load_into": actions.load_into,
    "listing": actions.listing,
    "one": actions.one,
    "list_run": actions.list_run,
    "many_saves": actions.many_saves,
}


def main(*, fork: bool) -> None:
    # What a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        job = Job(**json.loads(line))
        if not fork:
            answer(answers, {"pid": os.getpid()})
            answer(answers, outcome(job))
            return
        _load_libraries(job)
        child = os.fork()
        if not child:
            answer(answers, {"pid": os.getpid()})
            answer(answers, outcome(job))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            answer(answers, {"error": f"the process ended with status {status}"})


def answer(answers: Any, result: Result) -> None:
    answers.write(json.dumps(result) + "\n")
    answers.flush()


def outcome(job: Job) -> Result:
    """Return the result of a job, or the failure's whole traceback."""
    try:
        if job.action == "describe":
            return {"contenders": {name: describe(name) for name in CONTENDERS}}
        contender = _contender(job.contender)
        _limit_memory(job.memory_nbytes)
        return ACTIONS[job.action](job, contender)
    except Exception as error:  # whatever a foreign library raises: it is reported
        return {"error": traceback.format_exc(), "kind": _kind(error)}


def _kind(error: Exception) -> str:
    if isinstance(error, MemoryError) or any(word in str(error) for word in NO_MEMORY):
        return OUT_OF_MEMORY
    return WRONG if isinstance(error, AssertionError) else FAILED


def _limit_memory(nbytes: int) -> None:
    """Let an allocation fail, rather than the kernel end whatever it likes."""
    if nbytes:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (nbytes, hard))


def describe(name: str) -> Result:
    """Return what a contender offers, or why it cannot take part."""
    try:
        module = _contender(name)
    except Exception as error:  # whatever a foreign library raises when it cannot be loaded
        return {"name": name, "missing": f"{type(error).__name__}: {error}"}
    return {
        "name": module.NAME,
        "reads": module.READS,
        "offers": [each for each in FUNCTIONS if hasattr(module, each)],
        "only": list(getattr(module, "ONLY", ())),
        "without": list(getattr(module, "WITHOUT", ())),
        "versions": machine.versions(set(module.DISTRIBUTIONS)),
    }


def _contender(name: str) -> Any:
    return importlib.import_module(f"tests.bench.contenders.{name}")


def _load_libraries(job: Job) -> None:
    if job.action != "describe":
        _contender(_contender(job.contender).READS)


if __name__ == "__main__":
    main(fork="--fork" in sys.argv)
