"""The processes of a run's stacks, and what each says of its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from contract.errors import EnvironmentUnfit, MissingError
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity.cells import Device
from parity.mutants import catalogue, planting

REQUEST_SECONDS = 120.0
OWN_RUN_SECONDS = 1800.0
"""The same of a user's own run: tinygrad says nothing while it compiles the step of a model of any number of layers."""


@contextmanager
def started(
    chosen: Mapping[str, tuple[StackInfo, str]], mutants: Sequence[str] = (), *, own_run: bool = False
) -> Iterator[dict[str, StackProcess]]:
    """The chosen stacks, each in a process of its own, up and ready; ended when the block ends. Raises as `sets`."""
    with sets(1, chosen, mutants, own_run=own_run) as [processes]:
        yield processes


@contextmanager
def sets(
    count: int, chosen: Mapping[str, tuple[StackInfo, str]], mutants: Sequence[str] = (), *, own_run: bool = False
) -> Iterator[list[dict[str, StackProcess]]]:
    """So many times the chosen stacks, each in a process of its own, up and ready; ended when the block ends.

    Raises:
        EnvironmentUnfit: a stack says that this machine can't run it.
        MissingError: a stack's device is not here.
        HarnessError: a worker did not come up.
        UserError: a mutant of the contract that this process has not planted.
    """
    planting.require(mutants)
    planted = [catalogue.read(name) for name in mutants]
    made = [
        {
            name: StackProcess(
                name, info.command, device, request_seconds=OWN_RUN_SECONDS if own_run else REQUEST_SECONDS,
                mutations=[mutation for mutant in planted for mutation in mutant.mutations_of(name)],
            )
            for name, (info, device) in chosen.items()
        }
        for _ in range(count)
    ]  # fmt: skip
    every = [process for processes in made for process in processes.values()]
    pool = ThreadPoolExecutor(max_workers=max(1, len(every)))
    try:
        for starting in [pool.submit(_start, process) for process in every]:
            starting.result()
        yield made
    except BaseException:
        for process in every:
            process.kill()  # one that is still starting would keep the others, and the user, waiting
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for process in every:
            process.close()


def _start(process: StackProcess) -> None:
    try:
        process.start()
    except RequestFailed as error:
        if error.error_class == "EnvironmentUnfit":
            raise EnvironmentUnfit(f"{process.name}: {error.message}") from None
        if error.error_class in ("NotSupported", "MissingError"):
            raise MissingError(f"{process.name} on {process.device}: {error.message}") from None
        raise HarnessError(f"{process.name} could not make its stack: {error.error_class}: {error.message}") from None


def devices(chosen: Mapping[str, tuple[StackInfo, str]], processes: Mapping[str, StackProcess]) -> list[Device]:
    """A default device has every dtype that its stack declares; any other is asked what it has."""
    found = []
    for name, (info, device) in chosen.items():
        dtypes = declared_dtypes(info)
        if device != info.capabilities.devices[0]:
            dtypes &= _probed_dtypes(processes[name])
        found.append(Device(info=info, name=device, dtypes=dtypes))
    return found


def _probed_dtypes(process: StackProcess) -> frozenset[str]:
    try:
        dtypes = process.request("probe").values.get("dtypes")
    except RequestFailed as error:
        raise HarnessError(f"{process.name} on {process.device} does not say what it can do: {error.message}") from None
    if not isinstance(dtypes, list):
        raise HarnessError(f"{process.name} on {process.device} answered probe without a list of dtypes; see docs/protocol.md")
    return frozenset(map(str, dtypes))


def declared_dtypes(info: StackInfo) -> frozenset[str]:
    """Every dtype in which a stack says that it computes something."""
    graphs = info.capabilities.graphs
    of_graphs = () if graphs is None else (*graphs.architectures.values(), graphs.proxy)
    declared = (*info.capabilities.operations.values(), *of_graphs, *info.capabilities.scores.values())
    return frozenset(dtype for dtypes in declared for dtype in dtypes)
