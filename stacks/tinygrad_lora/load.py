"""The request `generate`: a model from disk, and an adapter on it, as a graph that writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.opening import named
from contract.worker.generation import Answer, Generation
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Reply
from stacks.tinygrad_lora.generate import Watcher, generate
from stacks.tinygrad_lora.held import hold
from stacks.tinygrad_lora.weights import Weights, of_checkpoint


def respond(
    values: Mapping[str, Any], device: str, channel: Channel | None = None, *, require: Callable[[GraphPlan], None] = lambda plan: None
) -> Reply:
    """The request `generate` (contract/worker/generation.py).

    Args:
        require: raises NotSupported for a plan that the stack, or its device, can't open.

    Raises:
        ValueError: values that are no such request, or as `stacks.tinygrad_lora.generate.generate`.
        ContractError, ContractErrors, MissingError: as `contract.artifacts.opening.named`.
    """
    request, started = Generation.model_validate(dict(values)), time.monotonic()
    files = named(request)
    require(files.plan)
    watcher = Watcher() if channel is None else _Telling(channel)
    source = Weights(files.plan, of_checkpoint(files.checkpoint), device)
    held = hold(files.plan, source, {} if files.adapter is None else tensors_of(files.adapter), device, report=watcher.loading)
    loaded = time.monotonic()
    done = generate(
        held, request.prompts, max_new_tokens=request.max_new_tokens, stop=request.stop, sampling=request.sampling,
        first_sequence=request.first_sequence, watcher=watcher,
    )  # fmt: skip
    answer = Answer(
        sequences=done.sequences, load_seconds=loaded - started, compile_seconds=done.compile_seconds,
        seconds=time.monotonic() - loaded - done.compile_seconds, notes=files.notes,
    )  # fmt: skip
    return Reply(values=answer.model_dump(mode="json"))


class _Telling(Watcher):
    """Tells the launcher how far it is, and hears whether it has a use for more."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def loading(self, done: int, total: int) -> None:
        self._channel.progress(loaded=done, of=total)

    def compiling(self, done: int, total: int) -> None:
        self._channel.progress(compiled=done, of=total)

    def new(self, ids: Mapping[int, int]) -> None:
        self._channel.progress(new=list(ids.items()))

    def cancelled(self) -> bool:
        return self._channel.cancelled
