"""A local condition, through a worker that writes a fixed text and goes wrong as its device says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ContractError, UserError
from parity.scorecard.conditions import Ask, BrokeDown, Outcome, Said
from parity.scorecard.conditions_local import LocalStack
from parity.scorecard.event import Asked
from parity.scorecard.spec import Spec
from tests.contract.commands.writing_stack import TEXT, described, tokenizer
from tests.contract.model import tiny_checkpoint
from tests.parity.scorecard.scorecard_cases import spec_values

SIZES = {"vocab_size": 300, "max_position_embeddings": 200, "eos_token_id": [7, 299, 300, None]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its tokenizer, and parity.toml."""
    folder = tmp_path_factory.mktemp("local")
    tiny_checkpoint.write(folder / "model", **SIZES)
    tokenizer().save(str(folder / "model/tokenizer.json"))
    described(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def local(**changed: Any) -> LocalStack:
    condition = {"id": "c", "kind": "local", "backend": "qlora", "stack": "writing", "model": "model"} | changed
    spec = Spec.model_validate(spec_values(conditions=[condition], seeds=[1], budgets={"max_new_tokens": 40, "request_seconds": 60.0}))
    return LocalStack(spec.conditions[0], spec)  # type: ignore[arg-type]


@pytest.fixture
def opened() -> Iterator[Any]:
    made: list[LocalStack] = []

    def open_one(**changed: Any) -> LocalStack:
        made.append(local(**changed))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def asks(count: int) -> list[Ask]:
    return [Ask(asked=Asked(condition="c", task=f"t{n}", seed=1, attempt=1), prompt="Say " + "a" * (n + 1)) for n in range(count)]


def outcomes(stack: LocalStack, count: int = 2) -> list[Outcome]:
    [together] = stack.answer(asks(count), lambda what: None)
    assert [ask for ask, _ in together] == asks(count)
    return [outcome for _, outcome in together]


def test_a_batch_is_one_request(opened: Any) -> None:
    first, second = outcomes(opened())
    assert isinstance(first, Said)
    assert isinstance(second, Said)
    assert (first.text, first.finish, first.batch, first.latency_ms) == (TEXT, "stop", 2, 2000.0)
    assert second.tokens_in == first.tokens_in + 1
    assert first.tokens_out == len(tokenizer().encode(TEXT).ids) + 1


@pytest.mark.parametrize("device", ["FAILS", "DIES", "LIES"])
def test_a_worker_that_fails_loses_the_attempts_and_no_more(opened: Any, device: str) -> None:
    stack = opened(device=device)
    for _ in range(2):
        found = outcomes(stack)
        assert [type(one) for one in found] == [BrokeDown] * 2
        assert {one.error for one in found if isinstance(one, BrokeDown)} == {"worker"}


def test_what_a_stack_refuses_ends_the_run(opened: Any) -> None:
    with pytest.raises(UserError, match="condition c: adapter: vocab: got 1"):
        outcomes(opened(device="REFUSES"))


def test_what_is_not_there_is_told_before_anybody_is_asked() -> None:
    with pytest.raises(UserError, match="nowhere"):
        local(adapter="nowhere-{seed}")
    with pytest.raises(ContractError, match="NONE"):
        local(device="NONE")
    with pytest.raises(ContractError, match=r"temperature 0\.5 and batch 64"):
        local(temperature=0.5)


def test_facts_name_every_file_and_change_with_what_makes_the_text(opened: Any) -> None:
    plain, other = opened().facts(), opened(template="none").facts()
    assert set(plain.hashes) >= {"base/config.json", "base/tokenizer.json"}
    assert plain.training is None
    assert plain.hashes == other.hashes
    assert plain.runtime_sha256 == other.runtime_sha256
    assert plain.generation_sha256 != other.generation_sha256
    assert opened(batch=1).facts().runtime_sha256 != plain.runtime_sha256
