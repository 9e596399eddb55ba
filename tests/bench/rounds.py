"""Rounds of shuffled jobs, each in a new process; what they return, and what disturbed them."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import random
import shutil
import time
from collections.abc import Callable
from typing import Final

from tests.bench import environments, machine, workloads
from tests.bench.contract import CONTENDERS, CORE, LIMITS, OURS
from tests.bench.job import NO_TIME, TOO_SLOW, WRONG, Job, Result
from tests.bench.measures import (
    DISK_BYTES,
    DISK_BYTES_PER_ARRAY,
    DISK_BYTES_PER_EARLIER,
    MEASURES,
    WORKLOADS,
    Measure,
)
from tests.bench.processes import JobError, Processes

IDLE_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 60.0  # for one process of a peer
PEERS_SHARE: Final = 0.6  # of the time, after which no peer begins: ours needs several rounds
QUICK_IDLE_SECONDS: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is asked for."""

    quick: bool
    rounds: int
    seed: int
    folder: pathlib.Path
    peer_rounds: int = 1  # of the rounds, those in which more than the core takes part
    seconds: float = math.inf  # no sample begins later than this; the first round is whole
    environments: pathlib.Path | None = None
    measures: tuple[Measure, ...] = MEASURES
    contenders: tuple[str, ...] = CONTENDERS
    workloads: tuple[str, ...] = WORKLOADS


def run(options: Options, say: Callable[[str], None]) -> Result:
    """Check every contender's files, then measure; return all that a report needs."""
    begin = time.time()
    before = machine.load_average()
    pythons = environments.pythons(options.environments)
    with Processes(fork=options.quick, pythons=pythons) as processes:
        known = _described(options, pythons, processes)
        bench = _Bench(options, known, processes, say)
        bench.prepare()
        bench.measure()
    offered = {name: c for name, c in known.items() if "missing" not in c}
    versions = {k: v for c in offered.values() for k, v in c["versions"].items()}
    return {
        "schema": 1,
        "curves": options.measures is not MEASURES,
        "quick": options.quick,
        "rounds": options.rounds,
        "seed": options.seed,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "took": round(time.time() - begin, 1),
        "machine": machine.describe(options.folder),
        "versions": versions,
        "load": {"before": before, "after": machine.load_average()},
        "contenders": known,
        "workloads": {name: _workload(name, options) for name in options.workloads},
        "compared": bench.compared,
        "samples": bench.samples,
        "failures": bench.failures,
        "left_out": bench.left_out,
    }


def _described(
    options: Options, pythons: dict[str, str], processes: Processes
) -> dict[str, Result]:
    """Ask in each environment what its contenders offer."""
    described: dict[str, Result] = processes.work(Job(action="describe"))["contenders"]
    for python in dict.fromkeys(pythons.values()):
        own = [name for name in pythons if pythons[name] == python]
        told = processes.work(Job(action="describe", contender=own[0]))["contenders"]
        described.update({name: told[name] for name in own})
    known: dict[str, Result] = {
        name: described[name] for name in CONTENDERS if name in options.contenders
    }
    for name, why in environments.not_installed(options.environments).items():
        if name in known and "missing" in known[name]:
            known[name]["missing"] += f" ({why})"
    return known


def _workload(name: str, options: Options) -> Result:
    own = workloads.workload(name, quick=options.quick)
    return {
        "title": own.title,
        "nbytes": own.nbytes,
        "arrays": len(own.shapes),
        "dtype": own.dtype,
        "checkpoints": own.checkpoints,
    }


class _Bench:
    def __init__(
        self,
        options: Options,
        known: dict[str, Result],
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.processes = processes
        self.known = {name: c for name, c in known.items() if "missing" not in c}
        self.say = say
        self.compared: list[Result] = []
        self.samples: list[Result] = []
        self.failures: list[Result] = []
        self.left_out: list[Result] = []
        self.deadline = time.monotonic() + options.seconds
        self.deadline_of_peers = time.monotonic() + PEERS_SHARE * options.seconds
        self.memory_nbytes = machine.available()

    def prepare(self) -> None:
        """Let every contender save once; bytes and content must be equal before timing."""
        for workload in self.options.workloads:
            # Those that read their own files come first: they write what others read.
            second = workload == "W3"
            for name in sorted(self.known, key=lambda n: self.known[n]["reads"] != n):
                if not self._needed(name, workload):
                    continue
                if second and self.known[name]["reads"] != OURS:
                    continue  # the others save all again: as in W1
                action = "check_second" if second else "check"
                job = self._job(action, workload, name)
                if self._is_late(name):
                    self._leave_out(job, "check", JobError("the time is up", NO_TIME))
                    continue
                if (result := self._try(job, "check")) is not None:
                    self._record_check(workload, name, result)

    def measure(self) -> None:
        """Run all measures in each round, in an order of its own."""
        jobs = [
            (measure, name)
            for measure in self.options.measures
            if measure.workload in self.options.workloads
            for name in self.known
            if self._takes_part(name, measure)
        ]
        order = random.Random(self.options.seed)
        for number in range(self.options.rounds):
            order.shuffle(jobs)
            for done, (measure, name) in enumerate(jobs, start=1):
                if number and time.monotonic() > self.deadline:
                    self.say("the time is up")
                    return
                if name not in CORE and number >= self.options.peer_rounds:
                    continue
                if self._is_left_out(measure.workload, measure.key, name):
                    continue
                if self._is_late(name):
                    job = self._measured(measure, name)
                    if number == 0:
                        self._leave_out(job, measure.key, JobError("the time is up", NO_TIME))
                    continue
                result = self._try(self._measured(measure, name), measure.key)
                if result is None:
                    continue
                where = f"round {number + 1}/{self.options.rounds}, {done}/{len(jobs)}"
                what = f"{measure.workload} {measure.title}, {self.known[name]['name']}"
                self.say(f"{where}: {what}: {_shown(result['value'], measure)}")
                self.samples.append(
                    {
                        "round": number,
                        "workload": measure.workload,
                        "measure": measure.key,
                        "contender": name,
                        "load": machine.load_average()[0],
                        **result,
                    }
                )

    def _record_check(self, workload: str, name: str, result: Result) -> None:
        own = workloads.workload(workload, quick=self.options.quick)
        row = {"workload": workload, "contender": name, **result}
        self.compared.append(row)
        if "nbytes" in result:
            data = own.nbytes * own.checkpoints
            extra = DISK_BYTES_PER_ARRAY * len(own.shapes) * own.checkpoints
            extra += DISK_BYTES_PER_EARLIER * own.checkpoints**2 // 2
            most = DISK_BYTES * data + extra if name in CORE else math.inf
            if not data <= result["nbytes"] <= most:
                self._fail(
                    workload,
                    name,
                    "check",
                    f"stored {result['nbytes']} bytes for arrays of {data}: not the same work",
                )

    def _is_late(self, name: str) -> bool:
        return name not in CORE and time.monotonic() > self.deadline_of_peers

    def _offers(self, name: str, function: str) -> bool:
        return function in self.known[name]["offers"]

    def _needed(self, name: str, workload: str) -> bool:
        """Tell whether a contender, or one that reads its files, takes part in a workload."""
        return any(
            self._takes_part(each, measure)
            for each in self.known
            if name in (each, self.known[each]["reads"])
            for measure in self.options.measures
            if measure.workload == workload
        )

    def _takes_part(self, name: str, measure: Measure) -> bool:
        contender = self.known[name]
        if measure.workload in contender["without"]:
            return False
        if contender["only"] and measure.key not in contender["only"]:
            return False
        if measure.among and name not in measure.among:
            return False
        if measure.is_memory and name in LIMITS:
            return False
        there = contender["reads"] in self.known or measure.needs == "saver"
        return there and any(self._offers(name, each) for each in measure.needs.split("|"))

    def _measured(self, measure: Measure, name: str) -> Job:
        pause = QUICK_IDLE_SECONDS if self.options.quick else IDLE_SECONDS
        return dataclasses.replace(
            self._job(measure.action, measure.workload, name),
            durable=measure.durable,
            idle_seconds=pause if measure.idle else 0.0,
            watch=measure.is_memory,
            cold=measure.cold,
        )

    def _job(self, action: str, workload: str, name: str) -> Job:
        reads = self.known[name]["reads"]
        return Job(
            action=action,
            contender=name,
            workload=workload,
            quick=self.options.quick,
            fixture=str(self.options.folder / "fixtures" / workload / reads),
            scratch=str(self.options.folder / "scratch"),
            memory_nbytes=self.memory_nbytes,
        )

    def _try(self, job: Job, key: str) -> Result | None:
        scratch = pathlib.Path(job.scratch)
        scratch.mkdir(parents=True)
        try:
            patience = {} if job.contender in CORE else {"seconds": PATIENCE_SECONDS}
            return self.processes.work(job, **patience)
        except JobError as error:
            if job.contender in CORE or error.kind == WRONG:
                self._fail(job.workload, job.contender, key, str(error))
            else:
                self._leave_out(job, key, error)
            return None
        finally:
            shutil.rmtree(scratch)

    def _leave_out(self, job: Job, key: str, error: JobError) -> None:
        """Go on without what a peer cannot do here; without a check there is no measure."""
        last = str(error).strip().splitlines()[-1]
        why = f"over {PATIENCE_SECONDS:.0f} s" if error.kind == TOO_SLOW else error.kind
        self.say(f"left out: {job.workload} {key}, {job.contender}: {why}: {last}")
        self.left_out.append(
            {
                "workload": job.workload,
                "measure": key,
                "contender": job.contender,
                "why": why,
                "reason": last,
            }
        )

    def _is_left_out(self, workload: str, key: str, name: str) -> bool:
        return any(
            row["workload"] == workload
            and row["measure"] in (key, "check")
            and row["contender"] in (name, self.known[name]["reads"])
            for row in self.left_out
        )

    def _fail(self, workload: str, name: str, key: str, reason: str) -> None:
        self.say(f"FAILED: {workload} {key}, {name}: {reason}")
        row = {"workload": workload, "measure": key, "contender": name, "reason": reason}
        if row not in self.failures:
            self.failures.append(row)


def _shown(value: float, measure: Measure) -> str:
    return f"{value / 2**20:.1f} MiB" if measure.is_memory else f"{value:.4f} s"
