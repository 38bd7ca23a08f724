"""Many recordings, one result each: over processes of this machine or over a Ray cluster.

A bag is reconstructed in a process of its own that does nothing else meanwhile, so that whatever
happens to it costs this bag alone. The results do not depend on who made them.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qvggt_core.errors import ParameterError, QvggtError
from qvggt_core.optional import import_optional
from qvggt_core.parameters import Parameters
from qvggt_core.results.result import Result, read_parameters
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_core.util.processes import end_with_parent
from qvggt_ros.drivers.options import ReplayOptions
from qvggt_ros.drivers.replay import Comparison, replay

Load = Callable[[Parameters], LoadedNetwork]
"""Loads the network; it must be importable by name, so that it can be sent to a process."""

MAX_WORKERS = 256

_LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Job:
    """One recording to reconstruct.

    Attributes:
        bag: the recording.
        output: the directory to make.
        parameters: how to reconstruct.
        options: what is read and written.
        comparison: how to compare with the ground truth.
    """

    bag: Path
    output: Path
    parameters: Parameters
    options: ReplayOptions = field(default_factory=ReplayOptions)
    comparison: Comparison = field(default_factory=Comparison)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        error: why there is no result, or an empty text.
        final: whether to try again is useless: the same input gives the same error.
        attempts: how often it was tried.
        seconds: wall time of the last try.
    """

    job: Job
    error: str = ""
    final: bool = False
    attempts: int = 1
    seconds: float = 0.0


def output_names(bags: Sequence[Path]) -> list[str]:
    """Return a name for the result of each recording.

    Raises:
        ParameterError: two recordings have one name.
    """
    names = [bag.resolve().stem if bag.is_file() else bag.resolve().name for bag in bags]
    if len(set(names)) < len(names):
        names = [
            f"{bag.resolve().parent.name}_{name}" for bag, name in zip(bags, names, strict=True)
        ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(
            f"several recordings would write the result {twice[0]}: reconstruct them apart, or "
            "name each only once"
        )
    return names


def former_results(jobs: Sequence[Job]) -> tuple[list[Job], list[Outcome]]:
    """Return the jobs whose results are there already, and those whose results are no use.

    A result is no use if it is damaged or was made with other parameters; where the job may
    overwrite it, it is made again.
    """
    kept: list[Job] = []
    useless: list[Outcome] = []
    for job in jobs:
        if not job.output.exists() or not any(job.output.iterdir()):
            continue
        try:
            Result.read(job.output)
            made_with = read_parameters(job.output).model_dump()
        except QvggtError as error:
            text = f"its former result is damaged: {error}; replace it with --overwrite"
            useless.append(Outcome(job, text, final=True))
            continue
        # What is left to choose may have been chosen either way.
        changed = [
            f"{name} {made_with[name]}"
            for name, value in job.parameters.model_dump().items()
            if value not in ("auto", "", 0, made_with[name])
        ]
        if changed and not job.options.overwrite:
            text = f"its former result was made with {', '.join(changed)}: add --overwrite"
            useless.append(Outcome(job, text, final=True))
        elif not changed:
            kept.append(job)
    if any(job.options.overwrite for job in jobs):
        useless = []
    return kept, useless


def run_job(job: Job, load: Load = load_network) -> Outcome:
    """Reconstruct one recording in this process; errors become part of the outcome."""
    started = time.perf_counter()
    error, final = "", False
    try:
        loaded = _network(load, job.parameters)
        replay(job.bag, job.output, loaded, job.options, comparison=job.comparison)
    except QvggtError as problem:
        error, final = str(problem), True
    except Exception as problem:  # one bag's failure, whatever it is, must not be the others'
        error = f"{type(problem).__name__}: {problem}"
    return Outcome(job, error[:_LONGEST_MESSAGE], final, seconds=time.perf_counter() - started)


_loaded: dict[tuple[Load, str], LoadedNetwork] = {}


def _network(load: Load, parameters: Parameters) -> LoadedNetwork:
    """Return the network, loaded once per process."""
    key = (load, parameters.model_dump_json())
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load(parameters)
    return _loaded[key]


def with_one_thread(parameters: Parameters) -> Parameters:
    """Return parameters whose number of threads does not depend on the machine.

    Sums over threads differ in their last bits; one thread per process is also what gives many
    bags the most of a machine's cores.
    """
    return parameters if parameters.threads else parameters.with_values(threads=1)


@dataclass(frozen=True)
class Batch:
    """Jobs, and how they are gone about.

    Attributes:
        jobs: what to do.
        retries: how often to try again what failed for a reason that may pass.
        load: loads the network.
        stop: called before each job; true begins no more.
    """

    jobs: Sequence[Job]
    retries: int = 1
    load: Load = load_network
    stop: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raise ParameterError if there cannot be so many retries."""
        if self.retries < 0:
            raise ParameterError(f"{self.retries} retries: choose 0 or more")

    def tries_again(self, outcome: Outcome) -> bool:
        """Return whether a job that ended so gets another try."""
        failed = bool(outcome.error) and not outcome.final
        return failed and outcome.attempts <= self.retries


def run_on_processes(batch: Batch, workers: int) -> Iterator[Outcome]:
    """Run jobs on processes of this machine; yield outcomes as they come.

    A worker that dies, as one that the system kills for its memory, is replaced, and its job is
    tried again.

    Args:
        batch: what to do.
        workers: number of processes.

    Raises:
        ParameterError: the number of workers or of retries is refused.
    """
    batch.check()
    if not 1 <= workers <= MAX_WORKERS:
        raise ParameterError(f"{workers} workers: choose 1 to {MAX_WORKERS}")
    pending = deque((job, 1) for job in batch.jobs)
    crew = [_Worker(batch.load) for _ in range(min(workers, len(batch.jobs)))]
    try:
        while pending or any(worker.job is not None for worker in crew):
            for worker in crew:
                if pending and worker.job is None and not batch.stop():
                    worker.start(*pending.popleft())
            busy = [worker for worker in crew if worker.job is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection not in ready:
                    continue
                outcome = worker.outcome()
                if batch.tries_again(outcome):
                    pending.append((outcome.job, outcome.attempts + 1))
                else:
                    yield outcome
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process that takes one job after the other."""

    def __init__(self, load: Load) -> None:
        self.job: Job | None = None
        self._attempt = 0
        self._load = load
        self._process: BaseProcess | None = None
        self.connection: Connection

    def start(self, job: Job, attempt: int) -> None:
        if self._process is None or not self._process.is_alive():
            self._spawn()
        self.job, self._attempt = job, attempt
        # A process that died before it read its job is an outcome, as one that dies later.
        with suppress(OSError):
            self.connection.send(job)

    def outcome(self) -> Outcome:
        """Return what became of the job; a process that died is an outcome too."""
        job, self.job = self.job, None
        assert job is not None
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join()
            code = self._process.exitcode
            outcome = Outcome(job, f"its process died with status {code}{_killed(code)}")
        return replace(outcome, job=job, attempts=self._attempt)

    def end(self) -> None:
        if self._process is None:
            return
        self.connection.close()
        if self.job is not None:
            self._process.terminate()
        self._process.join()

    def _spawn(self) -> None:
        # A forked process would inherit PyTorch's threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        process = context.Process(target=_work, args=(other, self._load), daemon=True)
        process.start()
        # Known from here on: one that could not be started, for want of memory, is none to end.
        self._process = process
        other.close()


def _killed(code: int | None) -> str:
    return ", killed by the system, perhaps for its memory" if code == -9 else ""


def _work(connection: Connection, load: Load) -> None:
    """Take jobs until there are no more: the life of a worker."""
    import signal

    # Ctrl-C is for the parent, which lets begun jobs end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_job(job, load))


def run_on_ray(batch: Batch, address: str) -> Iterator[Outcome]:
    """Run jobs on a Ray cluster, one core each; yield outcomes as they come.

    The machines of the cluster must have qvggt installed, and must see the recordings, the
    checkpoint and the output at the same paths.

    Args:
        batch: what to do.
        address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.

    Raises:
        MissingPackageError: Ray is not installed.
        ParameterError: the cluster cannot be reached, or the number of retries is refused.
    """
    batch.check()
    ray: Any = import_optional("ray")
    # One bag, one core; a task that dies with its machine is ours to try again.
    task: Any = ray.remote(num_cpus=1, max_retries=0)(run_job)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # Ray raises what its transports raise
        raise ParameterError(f"there is no Ray cluster at {address}: {error}") from error
    try:
        pending = deque((job, 1) for job in batch.jobs)
        running: dict[Any, tuple[Job, int]] = {}
        while pending or running:
            room = max(1, int(ray.cluster_resources().get("CPU", 1)))
            while pending and len(running) < room and not batch.stop():
                job, attempt = pending.popleft()
                running[task.remote(_absolute(job), batch.load)] = (job, attempt)
            if not running:
                return
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            job, attempt = running.pop(done)
            try:
                outcome = replace(ray.get(done), job=job, attempts=attempt)
            except ray.exceptions.RayError as error:
                outcome = Outcome(job, f"its task died: {error}"[:_LONGEST_MESSAGE], False, attempt)
            if batch.tries_again(outcome):
                pending.append((job, attempt + 1))
            else:
                yield outcome
    finally:
        ray.shutdown()


def _absolute(job: Job) -> Job:
    """Return a job whose paths hold in another working directory."""
    parameters = job.parameters
    if parameters.checkpoint:
        parameters = parameters.with_values(checkpoint=str(Path(parameters.checkpoint).resolve()))
    return replace(job, bag=job.bag.resolve(), output=job.output.resolve(), parameters=parameters)
