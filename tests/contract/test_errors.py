"""What a person reads when an input is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError, ContractErrors, UserError, brief


def test_a_contract_error_says_place_got_allowed_and_remedy_on_one_line() -> None:
    error = ContractError("run.yaml: exec.rank", got="0", allowed="1 or more", remedy="give 16")
    assert str(error) == "run.yaml: exec.rank: got 0; allowed: 1 or more; give 16"
    assert (error.place, error.got, error.allowed, error.remedy) == ("run.yaml: exec.rank", "0", "1 or more", "give 16")


def test_several_are_one_error_of_a_line_each() -> None:
    faults = [ContractError(place, got="0", allowed="1", remedy="mend it") for place in ("a", "b")]
    error = ContractErrors(faults)
    assert error.faults == tuple(faults)
    assert str(error).splitlines() == [str(fault) for fault in faults]
    assert isinstance(error, UserError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=50) | st.dictionaries(st.text(), inner, max_size=50),
    max_leaves=100,
)


@given(value=json_values)
def test_a_brief_value_is_one_bounded_line(value: object) -> None:
    text = brief(value)
    assert len(text.splitlines()) <= 1
    assert len(text) < 20_000


def test_a_brief_value_keeps_what_is_short() -> None:
    assert brief("rank\n16") == "'rank\\n16'"
    assert brief({"a": [1, 2.5, None]}) == "{'a': [1, 2.5, None]}"
    assert len(brief("x" * 10**6)) <= 82
    assert brief([10**10_000]) == "[<an integer of 33220 bits>]"
    assert brief(10**4000).startswith("1000")
