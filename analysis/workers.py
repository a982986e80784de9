"""Independent jobs, in this process or spread over the processes of a Ray cluster.

A *cell* is a pure job: its value depends on its item only, so that it may run anywhere, in any order, and again after
the process that ran it has died. `map_cells` runs cells and yields their values as they come. Every worker makes its
own job once (loads its models, say) and then takes one item at a time.

Ray (Moritz et al. 2018) is the extra `ray`. By itself a map starts a cluster on this machine and ends it; with
`RAY_ADDRESS` set, or after the caller's own `ray.init`, its workers are those of that cluster, which stays.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from smc_bridge.models.extras import install, is_installed

Item = TypeVar("Item")
Value = TypeVar("Value")

#: How often a cell is begun again when its worker has died, before it counts as the cause.
RETRIES = 3
#: Shared memory of a local cluster, bytes: values of cells are small.
STORE_BYTES = 128 * 2**20
#: How long the head of a cluster may take to accept a connection.
ANSWER_SECONDS = 10.0
#: Ray reports its usage to its makers, prints every death of a worker to standard output, and warns of its own plans.
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|memory pressure",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def check_workers(workers: int, *, name: str = "workers =") -> None:
    """Refuse a number of workers that cannot run here, before any work is done.

    Args:
        workers: processes; 1 needs nothing.
        name: what the user typed before the number, for the message.
    Raises:
        ValueError: the number is below 1, or above it and Ray is not installed.
    """
    if workers < 1:
        raise ValueError(f"{name} {workers}: give a whole number of at least 1")
    if workers > 1 and not is_installed("ray"):
        raise ValueError(f"{name} {workers} needs ray: {install('ray')}")


def import_ray() -> Any:
    """The module `ray`, which reads some of its settings as it is imported."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def map_cells(
    make: Callable[[], Callable[[Item], Value]], items: Sequence[Item], *, workers: int = 1,
    threads: int | None = None, retries: int = RETRIES,
) -> Generator[tuple[int, Value]]:
    """Run `make()(item)` for every item, and yield (index of the item, value) as cells finish.

    One worker is this process: items come in order, and nothing is pickled. More are processes of a Ray cluster: items
    are begun in order and come as they finish. A worker that dies is replaced and its cell begun again. Whoever may
    stop early closes the iterator (`contextlib.closing`), which ends the workers.

    Args:
        make: gives the job; called once in every worker, at its first item. Pickled by cloudpickle if `workers` > 1.
        items: arguments of the job, picklable too.
        workers: processes.
        threads: of each process; by default `OMP_NUM_THREADS`, else this machine's cores shared among the workers, and
            one in a cluster that was there before. One worker keeps the threads that this process has.
        retries: how often a cell is begun again.
    Raises:
        ValueError: an argument is out of range, Ray is missing, or the cluster is too small for the workers.
        ConnectionError: no cluster answers at `RAY_ADDRESS` (`host:port`, `auto`, or `local` for one of its own).
        ChildProcessError: a cell's worker died each time.
        Exception: whatever a job raises, as it raised it.
    """
    check_workers(workers)
    for name, value, least in (("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} = {value}: give a whole number of at least {least}")
    if workers == 1:
        return _here(make, items)
    return _on_ray(make, items, workers=workers, threads=threads, retries=retries)


def _here(make: Callable[[], Callable[[Item], Value]], items: Sequence[Item]) -> Generator[tuple[int, Value]]:
    job = make() if items else None
    for index, item in enumerate(items):
        assert job is not None
        yield index, job(item)


def _worker_class() -> Any:
    """The actor: one process that makes its job at the first item and keeps it.

    It is made here, and takes its job as bytes, because Ray sends a class of a module by name, and the module may lie
    where only the driver's path leads.
    """

    class Worker:
        def __init__(self, path: list[str], threads: int) -> None:
            sys.path.extend(folder for folder in path if folder not in sys.path)
            os.environ["OMP_NUM_THREADS"] = str(threads)  # for what the job imports
            self.threads = threads
            self.job: Callable[[Any], Any] | None = None

        def run(self, make: bytes, item: bytes) -> Any:
            if self.job is None:
                self.job = pickle.loads(make)()
                if torch := sys.modules.get("torch"):
                    torch.set_num_threads(self.threads)
            return self.job(pickle.loads(item))

    return Worker


def _on_ray(
    make: Callable[[], Callable[[Item], Value]], items: Sequence[Item], *, workers: int, threads: int | None,
    retries: int,
) -> Generator[tuple[int, Value]]:
    if not items:
        return
    workers = min(workers, len(items))
    with _cluster(workers, threads) as each:
        import ray
        from ray import cloudpickle
        from ray.exceptions import RayError, RayTaskError

        dumps: Callable[[Any], bytes] = cloudpickle.dumps
        worker: Any = ray.remote(_worker_class()).options(num_cpus=each, num_gpus=_gpus(workers), max_restarts=0)
        shared: Any = ray.put(dumps(make))
        waiting = list(range(len(items)))[::-1]
        deaths = [0] * len(items)
        running: dict[Any, tuple[int, Any]] = {}
        actors: set[Any] = set()

        def begin(actor: Any) -> None:
            actors.add(actor)
            if waiting:
                index = waiting.pop()
                running[actor.run.remote(shared, dumps(items[index]))] = index, actor

        try:
            for _ in range(workers):
                begin(worker.remote(sys.path, each))
            while running:
                [done], _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(done)
                try:
                    value = ray.get(done)
                except RayTaskError as error:
                    cause: Exception = error.cause
                    cause.add_note(str(error))  # the traceback of the worker
                    raise cause from None
                except RayError as error:
                    deaths[index] += 1
                    if deaths[index] > retries:
                        raise ChildProcessError(
                            f"cell {index + 1} of {len(items)}: its worker died at every attempt, of {retries + 1} "
                            f"({str(error).splitlines()[0]}); give fewer workers, or smaller cells, if memory is short"
                        ) from error
                    actors.remove(actor)
                    ray.kill(actor)
                    waiting.append(index)
                    begin(worker.remote(sys.path, each))
                else:
                    begin(actor)
                    yield index, value
        finally:
            for actor in actors:
                ray.kill(actor)


@contextmanager
def _cluster(workers: int, threads: int | None) -> Iterator[int]:
    """Join the cluster that is there or start one, and give the threads of each worker; end only what was started."""
    ray = import_ray()
    each = threads or _environment_threads()
    if ray.is_initialized():
        yield _fitting(workers, each or 1)
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        each = each or max(1, (os.cpu_count() or 1) // workers)
        options |= {"num_cpus": workers * each, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    handler = signal.getsignal(signal.SIGTERM)
    session: str | None = None
    try:
        if address != "local":
            _check_address(address)
        context = ray.init(**options)
        if address == "local":
            session = context.address_info["session_dir"]
        yield _fitting(workers, each or 1)
    finally:
        ray.shutdown()
        # Ray puts its own in place.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)


def _check_address(address: str) -> None:
    """Refuse an address where nothing answers: Ray would try for minutes, and then end the process."""
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit() or "/" in host:
        raise ValueError(f"RAY_ADDRESS = {address}: give the head of a cluster as host:port, or auto, or unset it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"RAY_ADDRESS = {address}: no cluster answers; start it, or unset it") from error


def _fitting(workers: int, threads: int) -> int:
    """The threads, if the cluster has room for the workers: Ray would wait for room for ever."""
    cores = int(_resources().get("CPU", 0))
    if cores < workers * threads:
        raise ValueError(
            f"workers = {workers}: with threads = {threads} they need {workers * threads} CPUs, the cluster has "
            f"{cores}; give fewer workers, or fewer threads (OMP_NUM_THREADS)"
        )
    return threads


def _environment_threads() -> int | None:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def _gpus(workers: int) -> float:
    """Share of a GPU for each worker: as many as possible have one for themselves."""
    gpus = int(_resources().get("GPU", 0))
    return 1 / math.ceil(workers / gpus) if gpus else 0.0


def _resources() -> dict[str, float]:
    found: dict[str, float] = import_ray().cluster_resources()
    return found
