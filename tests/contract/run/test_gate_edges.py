"""Facts on which two gates, or a gate and its neighbour's facts, could be mixed up."""

from __future__ import annotations

import pytest

from contract.run.gates import refusals
from contract.run.gates.choice import research_lane
from tests.contract.run.gate_cases import LORA, WANTED
from tests.contract.run.gate_facts import facts, inspected


def test_a_weight_without_a_place_is_refused_though_none_is_missing() -> None:
    [refusal] = refusals(facts(inspected=inspected(strange=("model.layers.9.extra.weight",))))
    assert refusal.gate == "whole_weights"
    assert "without a place: model.layers.9.extra.weight" in refusal.got
    assert "missing" not in refusal.got


def test_a_block_size_says_nothing_of_a_base_that_is_not_quantised() -> None:
    assert refusals(facts({**LORA, "quant__block_size": 4096})) == ()
    assert [refusal.gate for refusal in refusals(facts({"quant__block_size": 4096}))] == ["nf4_block_size"]


@pytest.mark.parametrize("layer", [2, 3])
def test_a_pattern_s_layer_is_one_of_the_model_s(layer: int) -> None:
    named = {"adapter__rank_pattern": {f"layers.{layer}.q_proj": 4}}
    found = [refusal.gate for refusal in refusals(facts(named, trained={"patterns": True}))]
    assert found == ([] if layer == 2 else ["pattern_names"])


def test_the_research_lane_s_own_contracts_need_no_record() -> None:
    named = {"adapter__method": "lora", "quant__base": "none", "stack": "beta"}
    assert research_lane(facts({**named, "lane": "research"}, promotion=WANTED)) is None
    assert research_lane(facts(named, promotion=WANTED)) is not None
