"""Runs the pipeline by several workers, then once more as a whole, which finds everything done."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from efficientllm import config, pipeline
from efficientllm.cache import dvc_repository
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.workers.folders import FOLDER, check_committed, make_folder, unite_locks
from efficientllm.workers.units import OPENING, Unit, needed_for, runnable, units

_RUNNING = re.compile(r"Running stage '([^']+)'")
_FAILED = re.compile(r"failed to reproduce '([^']+)'")
_PATIENCE_S = 30.0  # a training finishes its step, and saves its state


def repro(count: int | None, targets: Sequence[str] = (), root: Path = Path()) -> None:
    """Runs the pipeline of the working directory.

    Args:
        count: How many workers; as many as there are GPUs where it is None.
        targets: The stages to run, or groups of them, with what they need; all where there are none.
        root: The repository's root.

    Raises:
        ParameterError: A parameter or target is wrong, there are more workers than GPUs or units, or something is not
            committed.
        ArtifactError: A stage failed; the others have run.
    """
    configuration = config.load(root)
    check_committed(root)
    strategy = configuration.profile.parallel.strategy
    if strategy != "none":
        raise ParameterError(
            f"parallel.strategy is {strategy!r}, which trains each cell on all GPUs: run `dvc repro`, or set it to none"
        )
    needed_by_stage, cache = _pipeline(root)
    targets = [pipeline.name(target) for target in targets]  # addresses are fine too
    if targets:
        needed_by_stage = needed_for(targets, needed_by_stage)
    schedule = Schedule(units(needed_by_stage), needed_by_stage)
    most = max(1, schedule.total)  # the opening and the closing stages are no units
    if count is not None and count > most:
        raise ParameterError(
            f"--workers is {count}: give a number from 1 to that of the units that these stages are run in, {most}"
        )
    devices = _devices(count)
    _dvc(root, "repro", "-s", *OPENING)
    workers = [
        Worker(number, make_folder(number, configuration, cache, root), schedule, environment)
        for number, environment in enumerate(devices, start=1)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) and not any(worker.fault for worker in workers):
            time.sleep(0.2)
    finally:
        schedule.stop()
        with ThreadPoolExecutor(len(workers)) as together:
            list(together.map(Worker.interrupt, workers))
        for worker in workers:
            worker.join()
    for worker in workers:
        if worker.fault is not None:
            raise worker.fault
    if schedule.failed:
        raise ArtifactError(
            f"failed: {', '.join(sorted(schedule.failed))}; the others have run. See {FOLDER}/*.log; then run the same command "
            "again"
        )
    unite_locks({worker.folder: worker.finished for worker in workers}, root)
    finished = sorted(set[str]().union(*(worker.finished for worker in workers)))
    _dvc(root, "checkout", "--quiet", *map(pipeline.address, finished))
    _dvc(root, "repro", *map(pipeline.address, targets))


class Schedule:
    """Which unit is next: workers of odd number take the first that can run, the others the last.

    So cards share a kind of technique only where the work of one meets that of the other.

    Args:
        waiting: All units, in an order in which they can run.
        needed_by_stage: For each stage those that it needs.
    """

    def __init__(self, waiting: list[Unit], needed_by_stage: Mapping[str, Sequence[str]]) -> None:
        self.total = len(waiting)
        self.failed: set[str] = set()
        self._waiting = waiting
        self._needed_by_stage = needed_by_stage
        self._done: set[str] = set()
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, *, first: bool) -> Unit | None:
        """Waits for a unit whose needs are done; None where there is nothing left to take."""
        with self._changed:
            while self._waiting and not self._stopped:
                ready = [unit for unit in self._waiting if unit.needs <= self._done]
                if ready:
                    unit = ready[0 if first else -1]
                    self._waiting.remove(unit)
                    return unit
                self._changed.wait()
        return None

    def stages(self, unit: Unit) -> list[str]:
        """What of a unit, and of what it needs, can run after what has failed."""
        return runnable([*unit.ancestors, *unit.stages], self.failed, self._needed_by_stage)

    def fail(self, stage: str) -> None:
        """Notes that a stage failed."""
        with self._changed:
            self.failed.add(stage)

    def end(self, unit: Unit) -> int:
        """Notes that a unit has been run, and returns how many have."""
        with self._changed:
            self._done.add(unit.name)
            self._changed.notify_all()
            return len(self._done)

    def stop(self) -> None:
        """Hands out no more units."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Worker(threading.Thread):
    """Takes units and runs them in its folder until there are none.

    Args:
        number: From 1.
        folder: Where it runs.
        schedule: All workers' units.
        environment: Variables of its own, such as the device.

    Attributes:
        folder: Where it runs.
        finished: Stages whose outputs are there, by this run.
        fault: Why it ended with units left: no room for its log, or nobody who reads what it prints. No other worker would do
            the unit that it had, and those that need it would be waited for without end.
    """

    def __init__(self, number: int, folder: Path, schedule: Schedule, environment: Mapping[str, str]) -> None:
        super().__init__(name=f"worker {number}", daemon=True)
        self.finished: set[str] = set()
        self.fault: OSError | None = None
        self._number = number
        self.folder = folder
        self._schedule = schedule
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None
        self._interrupted = threading.Event()

    def run(self) -> None:
        """Runs units; called by `start`."""
        try:
            self._run_units()
        except OSError as error:
            self.fault = error

    def _run_units(self) -> None:
        with self.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
            while (unit := self._schedule.take(first=self._number % 2 == 1)) is not None:
                begun = time.monotonic()
                self._run_unit(unit, log)
                if self._interrupted.is_set():
                    return
                done, seconds = self._schedule.end(unit), time.monotonic() - begun
                print(
                    f"{self.name}: {unit.name} took {seconds:.0f} s; {done} of {self._schedule.total} units done",
                    flush=True,
                )

    def interrupt(self) -> None:
        """Ends what runs. A stage is told by SIGTERM, upon which a training saves its state; DVC ends after its stage."""
        import psutil

        self._interrupted.set()
        process = self._process
        if process is None:
            return
        told, end = set[int](), time.monotonic() + _PATIENCE_S
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            while process.poll() is None and time.monotonic() < end:
                stages = psutil.Process(process.pid).children(recursive=True)
                for stage in stages:
                    if stage.pid not in told:
                        told.add(stage.pid)
                        stage.terminate()
                if not stages and process.pid not in told:
                    told.add(process.pid)
                    process.send_signal(signal.SIGINT)
                time.sleep(0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def _run_unit(self, unit: Unit, log: IO[str]) -> None:
        """Runs a unit's stages; after a failure those that can run without the failed one."""
        while not self._interrupted.is_set():
            stages = self._schedule.stages(unit)
            if not set(stages) & set(unit.stages):
                return
            failed = self._repro(stages, log)
            if failed is None:
                if not self._interrupted.is_set():
                    self.finished.update(stages)
                return
            if failed not in stages:
                for stage in set(stages) & set(unit.stages):
                    self._schedule.fail(stage)
                return
            self._schedule.fail(failed)

    def _repro(self, stages: list[str], log: IO[str]) -> str | None:
        """Runs stages by one DVC process, and returns the one that failed; an empty name where DVC itself did."""
        command = [sys.executable, "-m", "dvc", "repro", "-s", *map(pipeline.address, stages)]
        with subprocess.Popen(
            command, cwd=self.folder, env=self._environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            self._process = process
            if self._interrupted.is_set():  # after the last look at it
                self.interrupt()
            failed = ""
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(f"{time.strftime('%H:%M:%S')} {line}")
                    log.flush()
                    if (running := _RUNNING.search(line)) is not None:
                        print(f"{self.name}: {pipeline.name(running[1])}", flush=True)
                    if (found := _FAILED.search(line)) is not None:
                        failed = pipeline.name(found[1])
            except OSError as error:
                self.fault = error  # told at once, for this block ends when the process does, which `interrupt` sees to
                raise
        if process.returncode == 0 or self._interrupted.is_set():
            return None
        print(f"{self.name}: {failed or 'dvc'} failed: see {self.folder.with_suffix('.log')}", flush=True)
        return failed


def _devices(count: int | None) -> list[dict[str, str]]:
    """The environment of each worker: all see all GPUs, so that the machine is described alike, each another one first."""
    import torch

    gpus = torch.cuda.device_count()
    if count is None:
        if gpus == 0:
            raise ParameterError(
                "there is no GPU, and on a CPU each cell takes all cores: run `dvc repro`, or give --workers"
            )
        count = gpus
    if count < 1 or 0 < gpus < count:
        raise ParameterError(
            f"--workers is {count}: give a number from 1 to that of the GPUs{f', {gpus}' if gpus else ''}"
        )
    if not gpus:
        return [{} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[first:] + visible[:first])} for first in range(count)]


def _pipeline(root: Path) -> tuple[dict[str, list[str]], Path]:
    """What each stage needs, by DVC, and where DVC's cache is."""
    with dvc_repository(root, "DVC cannot read the pipeline") as repository:
        graph = repository.index.graph
        needed = {
            pipeline.name(stage.addressing): [pipeline.name(other.addressing) for other in graph.successors(stage)]
            for stage in repository.index.stages
        }
        return needed, Path(repository.cache.local_cache_dir)


def _dvc(root: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=False)
    if done.returncode:
        raise ArtifactError(f"dvc {arguments[0]} failed, for the reason above")
