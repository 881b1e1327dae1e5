"""A stack of this machine: a base, or an adapter on it, asked through its worker by `generate`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import ContractError, ContractErrors, UserError
from contract.model import folder
from contract.reading import validated
from contract.run.content import sha256_of_inputs
from contract.run.generation import REQUEST, Asked, Prepared, prepare
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import discover, version
from contract.worker.generation import Answer, Generated, Sampling
from contract.worker.process import StackProcess
from parity.scorecard.conditions import Ask, BrokeDown, Doing, Facts, Outcome, Said
from parity.scorecard.conditions_training import training_of
from parity.scorecard.spec import SEED, Local, Spec
from parity.scorecard.task import sha256_of

_THE_USERS = ("ContractError", "ContractErrors", "MissingError", "NotSupported", "EnvironmentUnfit", "MemoryError", "OutOfMemory")
"""Classes of a worker's errors that asking again won't mend."""


class LocalStack:
    """A stack's worker, started when it is first asked."""

    def __init__(self, condition: Local, spec: Spec) -> None:
        """Finds the files.

        Raises:
            UserError: a file is not there or not sound, the stack is not here or has no such graph, or a temperature goes with a batch.
        """
        if condition.temperature > 0 and condition.batch > 1:  # what is drawn depends on a prompt's place in its request
            got = f"temperature {condition.temperature:g} and batch {condition.batch}"
            remedy = "a run that was broken off would draw other tokens; give batch: 1"
            raise ContractError(f"condition {condition.id}", got=got, allowed="temperature 0, or batch 1", remedy=remedy)
        self.batch = condition.batch
        self._condition, self._spec, self._stacks = condition, spec, discover()
        self._process: StackProcess | None = None
        for seed in spec.seeds:
            self._prepared(["a prompt, to see whether the files fit"], seed)

    def facts(self) -> Facts:
        """Hashes of the base's files and of each seed's adapter; how the text is made; the training manifests beside the adapters."""
        condition, budgets = self._condition, self._spec.budgets
        home = folder.locate(condition.model, place="model").resolve()
        base = {f"base/{path.name}": path for path in sorted(home.iterdir()) if path.suffix in (".safetensors", ".json") and path.is_file()}
        adapters = {seed: path for seed in self._spec.seeds if (path := self._adapter(seed)) is not None}
        files = {f"adapter/{seed}/{path.name}": path for seed, of in adapters.items() for path in sorted(of.iterdir()) if path.is_file()}
        hashes = sha256_of_inputs(base)
        info = self._stacks[condition.stack]
        versions = {name: version(name) for name in ("twostack", *info.capabilities.packages)}
        device = condition.device or info.capabilities.devices[0]
        runtime = [condition.stack, device, condition.dtype, condition.base, condition.batch, versions, hashes]
        made = [condition.template, condition.tokenizer, condition.temperature, condition.top_p, budgets.max_new_tokens, self._spec.system]
        return Facts(
            hashes=hashes | sha256_of_inputs(files), runtime_sha256=sha256_of(runtime), generation_sha256=sha256_of(made),
            training=training_of(adapters, self._stacks) if len(adapters) == len(self._spec.seeds) else None,
        )  # fmt: skip

    def answer(self, asks: Sequence[Ask], doing: Doing) -> Iterator[Sequence[tuple[Ask, Outcome]]]:
        """One request of all prompts (Generator.answer).

        Raises:
            UserError: the stack refuses, and said why.
        """
        prepared = self._prepared([ask.prompt for ask in asks], asks[0].asked.seed)
        started = time.monotonic()
        try:
            answer = self._generate(prepared, doing)
        except HarnessError as error:
            message = str(error).splitlines()[0][:500]
            spent = 1000 * (time.monotonic() - started) / len(asks)
            yield [(ask, BrokeDown(error="worker", message=message, latency_ms=spent)) for ask in asks]
            return
        rows = zip(asks, prepared.request.prompts, answer.sequences, strict=True)
        yield [(ask, self._said(prepared, one, len(ids), answer.seconds, len(asks))) for ask, ids, one in rows]

    def close(self) -> None:
        """Ends the worker."""
        if self._process is not None:
            self._process.close()

    def _generate(self, prepared: Prepared, doing: Doing) -> Answer:
        stack, condition = prepared.stack, self._condition
        if self._process is None:
            seconds = self._spec.budgets.request_seconds
            self._process = StackProcess(stack.name, stack.command, prepared.device, request_seconds=seconds)
        new, most = 0, prepared.request.max_new_tokens * len(prepared.request.prompts)

        def watch(values: Mapping[str, Any] | None) -> None:
            nonlocal new
            new += len((values or {}).get("new", ()))
            doing(f"{new:,} of at most {most:,} tokens")

        try:
            found = self._process.submit(REQUEST, prepared.request.model_dump(mode="json")).result(watch)
            return _checked(found.values, stack.name, len(prepared.request.prompts))
        except RequestFailed as error:
            if error.error_class in _THE_USERS:
                raise UserError(f"condition {condition.id}: {error.message.splitlines()[0]}") from None
            raise HarnessError(f"{stack.name}: {error.error_class}: {error.message}") from None

    def _prepared(self, prompts: Sequence[str], seed: int) -> Prepared:
        condition, budgets = self._condition, self._spec.budgets
        asked = Asked(
            model=condition.model, adapter=self._adapter(seed), prompts=prompts, system=self._spec.system, template=condition.template,
            tokenizer=condition.tokenizer, stack=condition.stack, device=condition.device, base=condition.base, dtype=condition.dtype,
            max_new_tokens=budgets.max_new_tokens,
            sampling=Sampling(temperature=condition.temperature, top_p=condition.top_p, seed=seed),
        )  # fmt: skip
        return prepare(asked, self._stacks)

    def _adapter(self, seed: int) -> Path | None:
        name = self._condition.adapter
        return None if name is None else Path(name.replace(SEED, str(seed))).expanduser()

    def _said(self, prepared: Prepared, one: Generated, tokens_in: int, seconds: float, batch: int) -> Said:
        ids = one.ids[:-1] if one.finish == "stop" else one.ids
        return Said(
            text=prepared.tokenizer.decode(ids), finish="stop" if one.finish == "stop" else "length", tokens_in=tokens_in,
            tokens_out=len(one.ids), latency_ms=1000 * seconds, batch=batch,
        )  # fmt: skip


def _checked(values: Mapping[str, Any], stack: str, prompts: int) -> Answer:
    try:
        answer = validated(Answer, values, f"the answer of {stack}", remedy="see to the stack")
    except (ContractError, ContractErrors) as error:
        raise HarnessError(str(error).splitlines()[0]) from None
    cancelled = any(one.finish == "cancelled" for one in answer.sequences)
    if len(answer.sequences) != prompts or cancelled:
        what = "a sequence that was cancelled" if cancelled else f"{len(answer.sequences)} sequences of {prompts}"
        raise HarnessError(f"{stack}: answered {what}")
    return answer
