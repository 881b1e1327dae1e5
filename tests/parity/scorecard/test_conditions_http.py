"""http_generate against a real server on loopback: what is sent, what comes back, and every way in which it goes wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from contract.errors import ContractError
from parity.scorecard.conditions import Ask, BrokeDown, Outcome, Said
from parity.scorecard.conditions_http import LONGEST_WAIT, Server
from parity.scorecard.event import Asked
from parity.scorecard.spec import Budgets, HttpGenerate
from tests.parity.scorecard.misbehaving_server import BEHAVIOUR, Served, serving, url_of

SOON = 0.3
"""Seconds of a request that no answer ends: it ends it, so that nothing depends on how fast this machine is."""
LATE = 60.0


@pytest.fixture
def server() -> Iterator[Served]:
    with serving() as found:
        yield found


def asks(*prompts: str) -> list[Ask]:
    return [Ask(asked=Asked(condition="c", task=f"t{number}", seed=5, attempt=1), prompt=prompt) for number, prompt in enumerate(prompts)]


def condition(server: Served, model: str, seconds: float = LATE, retries: int = 2, **changed: Any) -> tuple[Server, list[float]]:
    """A condition, and the waits that it asks for, which pass at once."""
    waits: list[float] = []

    def sleep(seconds: float) -> bool:
        waits.append(seconds)
        return False

    values: dict[str, Any] = {"id": "c", "backend": "b", "kind": "http_generate", "server_url": url_of(server), "model": model}
    budgets = Budgets(request_seconds=seconds, infra_retries=retries, max_new_tokens=33)
    return Server(HttpGenerate.model_validate(values | changed), budgets, system="Be brief.", sleep=sleep), waits


def outcome(made: Server) -> Outcome:
    [[(_, found)]] = made.answer(asks("Say one."), lambda what: None)
    return found


def test_what_is_sent_and_what_comes(server: Served) -> None:
    made, waits = condition(server, "good", temperature=0.5, top_p=0.9)
    found = outcome(made)
    assert isinstance(found, Said)
    assert (found.text, found.finish, found.tokens_in, found.tokens_out, waits) == ("one!", "stop", 11, 3, [])
    [request] = server.requests
    assert request == {
        "path": "/v1/chat/completions", "model": "good", "stream": False, "max_tokens": 33, "temperature": 0.5, "top_p": 0.9, "seed": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say one."}],
    }  # fmt: skip


def test_several_at_a_time_each_get_their_own_answer(server: Served) -> None:
    made, _ = condition(server, "good", concurrency=4)
    assert made.batch == 4
    asked = asks("a", "b", "c", "d")
    found = dict(pair for together in made.answer(asked, lambda what: None) for pair in together)
    assert set(found) == set(asked)
    assert {request["messages"][1]["content"] for request in server.requests} == {"a", "b", "c", "d"}


@pytest.mark.parametrize(("model", "finish", "tokens"), [("cut-by-length", "length", 3), ("no-usage", "unknown", 0)])
def test_what_a_server_may_leave_out(server: Served, model: str, finish: str, tokens: int) -> None:
    found = outcome(condition(server, model)[0])
    assert isinstance(found, Said)
    assert (found.text, found.finish, found.tokens_out) == ("one!", finish, tokens)


BROKEN = {
    "drops": "dropped", "drops-in-headers": "dropped", "drops-in-body": "dropped", "no-http": "garbage", "no-json": "garbage",
    "not-utf-8": "garbage", "no-choices": "garbage", "null-content": "garbage", "number-content": "garbage", "deep": "garbage",
    "failing": "server_error", "unavailable": "server_error", "limited": "rate_limited", "limited-until": "rate_limited",
    "limited-forever": "rate_limited",
}  # fmt: skip
SLOW = ("hangs", "drips", "drips-headers")
REFUSED = ("unknown-model", "unauthorized", "redirects")
GOOD = {"good", "cut-by-length", "no-usage", "limited-once", "drops-once", "good-twice"}


def test_every_behaviour_is_asked_for() -> None:
    assert set(BROKEN) | set(SLOW) | set(REFUSED) | GOOD == set(BEHAVIOUR)


@pytest.mark.parametrize("model", BROKEN)
def test_what_breaks_down_is_tried_again_and_then_told(server: Served, model: str) -> None:
    made, waits = condition(server, model)
    found = outcome(made)
    assert isinstance(found, BrokeDown)
    assert found.error == BROKEN[model]
    assert len(server.requests) == 3
    expected = {"limited": [7.0, 7.0], "limited-forever": [LONGEST_WAIT] * 2, "unavailable": [1.0, 1.0]}
    assert waits == expected.get(model, [0.5, 1.0])


@pytest.mark.parametrize("model", SLOW)
def test_a_deadline_holds_for_the_whole_request(server: Served, model: str) -> None:
    found = outcome(condition(server, model, SOON, retries=0)[0])
    assert isinstance(found, BrokeDown)
    assert found.error == "timeout"


@pytest.mark.parametrize(("model", "waited"), [("limited-once", [7.0]), ("drops-once", [0.5])])
def test_what_passes_is_no_error(server: Served, model: str, waited: list[float]) -> None:
    made, waits = condition(server, model)
    assert isinstance(outcome(made), Said)
    assert waits == waited


@pytest.mark.parametrize("model", REFUSED)
def test_what_asking_again_does_not_mend_ends_the_run(server: Served, model: str) -> None:
    with pytest.raises(ContractError, match=r"condition c: got .* answered") as caught:
        outcome(condition(server, model)[0])
    assert len(server.requests) == 1
    assert "\x1b" not in str(caught.value)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        made = Server(
            HttpGenerate(id="c", backend="b", kind="http_generate", server_url=url, model="m"), Budgets(infra_retries=0), system=None
        )
        found = outcome(made)
    assert isinstance(found, BrokeDown)
    assert found.error == "refused"


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://user:password@x/v1", "http://x/v1?key=1", "file:///etc/passwd", "x"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="server_url"):
        HttpGenerate(id="c", backend="b", kind="http_generate", server_url=url, model="m")
