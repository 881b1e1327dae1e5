"""What adapter files mean: against the contract's writers, which tests/contract/artifacts holds against PEFT; what is no such file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contract.artifacts.saved import of_plan, write_both
from parity.checks.artifact_case import FILES, ArtifactCase, on_disk
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.reference import artifact
from parity.reference.artifact import Linear, Meaning
from tests.parity.graph_stack import case_of


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def case(request: pytest.FixtureRequest) -> ArtifactCase:
    return on_disk(case_of({"llama": OPTIONS["llama"][0], "gpt2": PLAIN["gpt2"][0]}[request.param]))


def same(one: Meaning, other: Meaning) -> bool:
    def bits(linear: Linear) -> tuple[object, ...]:
        return linear.scale, linear.a_RI.shape, linear.a_RI.tobytes(), linear.b_OR.shape, linear.b_OR.tobytes()

    return {path: bits(linear) for path, linear in one.items()} == {path: bits(linear) for path, linear in other.items()}


def read(case: ArtifactCase) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in case.files().items()}


def test_every_format_means_the_adapter(case: ArtifactCase) -> None:
    files, drawn = read(case), artifact.drawn(case.plan.lora, case.adapter)
    tensors, v2, v3, config, peft = (files[name] for name in FILES)
    assert len(drawn) == len(case.adapter) // 2
    for found in (artifact.ours(v2, tensors), artifact.ours(v3, tensors), artifact.pefts(config, peft)):
        assert same(found, drawn)


def test_another_adapter_means_another(case: ArtifactCase, tmp_path: Path) -> None:
    drawn = artifact.drawn(case.plan.lora, case.adapter)
    turned = {name: -matrix if name.endswith("layers.1.o_proj.lora_b") else matrix for name, matrix in case.adapter.items()}
    write_both(of_plan(case.plan, turned), tmp_path)
    config, peft = ((tmp_path / name).read_bytes() for name in FILES[3:])
    found = artifact.pefts(config, peft)
    assert [path for path in drawn if not same({path: drawn[path]}, {path: found[path]})] == ["layers.1.o_proj"]


def test_a_merge_of_files_is_the_formula_bit_for_bit(case: ArtifactCase) -> None:
    merged = case.merged()
    found = case.merged_files()
    assert set(found) == ({"file merge", "static attention"} if case.plan.layout.model_type == "gpt2" else {"file merge"})
    for of_files in found.values():
        assert of_files
        assert all(np.array_equal(merged[path], weight) for path, weight in of_files.items())
    assert set(found["file merge"]) == set(merged)


def test_the_sum_goes_over_ranks_in_order_and_is_scaled_last() -> None:
    """2^60 + 1 - 2^60 is 0 from the left; scaled first by 1/3, the two large ones would leave a rest."""
    one = Linear(scale=1 / 3, a_RI=np.array([[2.0**60], [1], [-(2.0**60)], [3]], np.float32), b_OR=np.ones((1, 4), np.float32))
    assert artifact.merged(np.zeros((1, 1), np.float32), one)[0, 0] == 1


@pytest.mark.parametrize(("field", "value", "message"), [("fan_in_fan_out", False, "fan_in_fan_out is false"), ("r", 4, "not its rank")])
def test_a_config_that_does_not_fit_is_refused(field: str, value: object, message: str) -> None:
    files = read(on_disk(case_of(PLAIN["gpt2"][0])))
    config = json.loads(files[FILES[3]]) | {field: value}
    config["rank_pattern"] = {} if field == "r" else config["rank_pattern"]
    with pytest.raises(ValueError, match=message):
        artifact.pefts(json.dumps(config).encode(), files[FILES[4]])


def test_a_tensor_that_the_description_does_not_name_is_refused(case: ArtifactCase) -> None:
    files = read(case)
    description = json.loads(files[FILES[1]])
    description["base_key_map"].popitem()
    with pytest.raises(ValueError, match="the description names no"):
        artifact.ours(json.dumps(description).encode(), files[FILES[0]])
