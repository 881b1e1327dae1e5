"""Each gate from both sides: refused by itself alone, and just allowed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract.run.gates
from contract.run.facts import Refusal
from contract.run.gates import GATES, refusals
from contract.run.promotion import Promotion
from tests.contract.run.gate_cases import CASES, GRANTED, PROXY, WANTED, Case
from tests.contract.run.gate_facts import TRAINING, capabilities, facts, inspected


def test_the_sound_run_is_refused_by_no_gate() -> None:
    assert refusals(facts()) == ()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gate_refuses_alone_and_says_why(case: Case) -> None:
    [refusal] = refusals(facts(**case.refused))
    assert refusal.gate == case.gate
    text = f"{refusal.got} | {refusal.allowed} | {refusal.remedy}"
    assert all(words in text for words in case.words), text
    assert "\n" not in text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gate_lets_through_what_is_just_allowed(case: Case) -> None:
    assert refusals(facts(**case.allowed)) == ()


def test_every_gate_is_refused_by_some_case() -> None:
    names = [gate.__name__ for gate in GATES]
    assert len(set(names)) == len(names)
    assert {case.gate for case in CASES} == set(names)


def test_every_gate_has_a_boundary_that_is_let_through() -> None:
    assert {case.gate for case in CASES if case.allowed} == {gate.__name__ for gate in GATES}


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_a_gate_without_facts_says_nothing_or_speaks_of_the_contract(gate: Any) -> None:
    """With no stack known and nothing found a gate neither fails nor complains of what it could not see."""
    bare = facts(
        {"adapter__target_modules": ["nothing"], "exec__seq_len": 9000, "stack": None}, stacks={"none": capabilities(training=None)},
        has_tokenizer=None, inspected=None, rows=None, steps=None, estimate=None, device_memory=None,
    )  # fmt: skip
    refused = gate(bare)
    assert refused is None or refused.gate == "no_stack"


def test_all_refusals_come_at_once() -> None:
    five = facts(
        {"exec__seq_len": 5000, "exec__compute_dtype": "bfloat16", "data__tokenizer_mode": "vox", "exec__lm_head_only": True}, steps=3
    )
    assert [refusal.gate for refusal in refusals(five)] == ["compute_dtype", "proxy_fields", "positions", "qlora_tokenizer", "warmup"]


def test_a_refusal_has_got_allowed_and_remedy() -> None:
    assert set(Refusal.model_fields) == {"gate", "got", "allowed", "remedy"}
    for name in Refusal.model_fields:
        with pytest.raises(ValueError, match=name):
            Refusal(**{**dict.fromkeys(Refusal.model_fields, "x"), name: ""})


def test_a_promoted_stack_may_be_named_in_place_of_the_inferred_one() -> None:
    """On an NF4 base the production lane leads to alpha; beta's own record for this run is what lets it through."""
    named = {"stack": "beta", "adapter__method": "lora"}
    assert [refusal.gate for refusal in refusals(facts(named, promotion=WANTED))] == ["forced_stack", "research_lane"]
    assert refusals(facts(named, promotion=GRANTED)) == ()


def test_at_most_32_missing_keys_are_listed() -> None:
    [refusal] = refusals(facts({**PROXY, "exec__require_full_proxy_stack": True}, inspected=inspected(proxy=(80, 30))))
    assert refusal.got.count(".o_proj.weight") == 32
    assert refusal.got.endswith("and 18 more")


def test_gates_name_no_stack() -> None:
    folder = Path(inspect.getfile(contract.run.gates)).parent
    for path in [*folder.glob("*.py"), folder.parent / "planner.py", folder.parent / "survey.py", folder.parent / "memory.py"]:
        assert not [name for name in ("torch_qlora", "tinygrad_lora") if name in path.read_text()], path


def test_the_declared_way_to_a_stack_is_read_and_not_known() -> None:
    rule = {"inferred_for": [{"lane": "research", "bases": ["nf4"]}], "bases": {"lora": ["nf4"]}}
    found = facts({"lane": "research", "adapter__method": "lora"}, stacks={"omega": capabilities(training={**TRAINING, **rule})})
    assert found.stack == "omega"
    assert refusals(found) == ()


@given(text=st.text(min_size=1))
def test_a_refusal_is_one_printable_line(text: str) -> None:
    refusal = Refusal(gate="gate", got=text, allowed=text, remedy=text)
    assert refusal.got.isprintable()
    assert refusal.got == text or not text.isprintable()


def test_of_many_records_a_few_are_told() -> None:
    many = Promotion(granted=False, wanted="x", found=tuple(f"record {number}" for number in range(9)))
    [refusal] = refusals(facts({"stack": "beta", "adapter__method": "lora", "quant__base": "none"}, promotion=many))
    assert refusal.got.endswith("record 3; and 5 more")
