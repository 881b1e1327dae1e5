"""A server that speaks OpenAI's chat completions: POST {server_url}/chat/completions, one prompt a request, no streaming.

https://platform.openai.com/docs/api-reference/chat/create. Whatever goes wrong on the way is an infra error: a deadline that passes, a
connection that is refused or dropped, an answer that is none, 429 and 5xx. It is tried again, later each time (429: when Retry-After
says), and then counted; the task did not fail. What the server says of the request itself (400, 401, 404, ...) ends the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import ContractError, brief
from parity.scorecard.conditions import Ask, BrokeDown, Doing, Facts, InfraKind, Outcome, Said
from parity.scorecard.conditions_post import Answered, Broken, Line, post
from parity.scorecard.spec import Budgets, HttpGenerate
from parity.scorecard.task import sha256_of

FIRST_WAIT = 0.5
"""Seconds before a request is sent for the second time; twice that before the third, and so on."""
LONGEST_WAIT = 60.0
"""Seconds that are waited at most, whatever a server asks for."""

_TRIED_AGAIN: dict[int, InfraKind] = {408: "timeout", 425: "server_error", 429: "rate_limited"}


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    content: str


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Answer(BaseModel):
    """Of a chat completion, what is needed; servers add fields of their own."""

    model_config = ConfigDict(extra="ignore", strict=True)

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class Server:
    """A server.

    Args:
        system: the system turn of each request.
        sleep: how a wait passes; true if it was broken off.
    """

    def __init__(
        self, condition: HttpGenerate, budgets: Budgets, *, system: str | None, sleep: Callable[[float], bool] | None = None
    ) -> None:
        self.batch = condition.concurrency
        self._condition, self._budgets, self._system = condition, budgets, system
        self._ended, self._line = Event(), Line()
        self._sleep = self._ended.wait if sleep is None else sleep

    def answer(self, asks: Sequence[Ask], doing: Doing) -> Iterator[Sequence[tuple[Ask, Outcome]]]:
        """Sends all of them at once (Generator.answer).

        Raises:
            UserError: the server refuses a request for what it is.
        """
        pool = ThreadPoolExecutor(max_workers=len(asks))
        try:
            futures = {pool.submit(self._one, ask): ask for ask in asks}
            for future in as_completed(futures):
                yield [(futures[future], future.result())]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if not all(future.done() for future in futures):  # Ctrl-C: whoever waits, to try again or for an answer, stops
                self.close()
            pool.shutdown(wait=True)

    def facts(self) -> Facts:
        """How it is asked; what it answers with can't be seen from here."""
        asked = self._condition.model_dump(mode="json")
        generation = sha256_of([asked["temperature"], asked["top_p"], self._budgets.max_new_tokens, self._system])
        return Facts(runtime_sha256=sha256_of([asked["server_url"], asked["model"]]), generation_sha256=generation)

    def close(self) -> None:
        """Ends what is under way; nothing can be asked any more."""
        self._ended.set()
        self._line.cut()

    def _one(self, ask: Ask) -> Outcome:
        """One prompt, tried again as often as the budget allows; the last break-down is told."""
        broken: Broken | None = None
        for tried in range(self._budgets.infra_retries + 1):
            if broken is not None:
                wait = FIRST_WAIT * 2 ** (tried - 1) if broken.retry_after is None else broken.retry_after
                if self._sleep(min(wait, LONGEST_WAIT)):
                    break
            begun = time.monotonic()
            found = self._request(ask)
            if isinstance(found, Said):
                return found
            broken = found
        assert broken is not None
        return BrokeDown(error=broken.error, message=broken.message, latency_ms=1000 * (time.monotonic() - begun))

    def _request(self, ask: Ask) -> Said | Broken:
        condition = self._condition
        turns = [] if self._system is None else [{"role": "system", "content": self._system}]
        body = {
            "model": condition.model, "messages": [*turns, {"role": "user", "content": ask.prompt}], "stream": False,
            "max_tokens": self._budgets.max_new_tokens, "temperature": condition.temperature, "top_p": condition.top_p,
            "seed": ask.asked.seed,
        }  # fmt: skip
        url = f"{condition.server_url.rstrip('/')}/chat/completions"
        started = time.monotonic()
        found = post(url, json.dumps(body).encode(), seconds=self._budgets.request_seconds, line=self._line)
        if isinstance(found, Broken):
            return found
        milliseconds = 1000 * (time.monotonic() - started)
        if found.status != 200:
            return self._refused(found, url)
        return _said(found.body, milliseconds)

    def _refused(self, found: Answered, url: str) -> Broken:
        """A status that is no success: tried again, or the user's to put right."""
        message = f"{url} answered {found.status}: {brief(found.body[:200].decode(errors='replace'))}"
        kind: InfraKind | None = _TRIED_AGAIN.get(found.status, "server_error" if found.status >= 500 else None)
        if kind is None:
            remedy = "correct server_url, model or the budget of tokens"
            raise ContractError(f"condition {self._condition.id}", got=message, allowed="200, and 429 or 5xx for a while", remedy=remedy)
        return Broken(kind, message, retry_after=found.retry_after)


def _said(body: bytes, milliseconds: float) -> Said | Broken:
    try:
        answer = _Answer.model_validate_json(body)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its body"
        return Broken("garbage", f"no chat completion: {where}: {first['msg'][:200]}; it began {brief(body[:80].decode(errors='replace'))}")
    choice, usage = answer.choices[0], answer.usage or _Usage()
    finish = choice.finish_reason
    return Said(
        text=choice.message.content, finish="stop" if finish == "stop" else "length" if finish == "length" else "unknown",
        tokens_in=usage.prompt_tokens, tokens_out=usage.completion_tokens, latency_ms=milliseconds,
    )  # fmt: skip
