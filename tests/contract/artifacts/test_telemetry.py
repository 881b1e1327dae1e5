"""telemetry.jsonl: what is appended is read; a torn last line is told, any other fault refused by its line."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.artifacts.telemetry import MAX_LINE, TelemetryRow, TelemetryWriter, read_telemetry
from contract.errors import ContractError, ContractErrors
from tests.contract.artifacts.adapter_cases import read_or_refused, refused


def row(step: int, **changed: Any) -> TelemetryRow:
    facts = {"loss": 2.5, "lr": 1e-4, "grad_norm": 0.75, "tokens": 31, "tokens_per_second": 12.5, "memory_bytes": 10**9, "skipped": 4}
    return TelemetryRow(step=step, **(facts | changed))


def written(path: Path, *rows: TelemetryRow, after_step: int = 0) -> Path:
    writer = TelemetryWriter(path, after_step=after_step)
    for one in rows:
        writer.append(one)
    writer.close()
    return path


_numbers = st.floats()
_finite = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
_counts = st.integers(0, 2**63 - 1)


@given(
    rows=st.lists(
        st.builds(
            TelemetryRow, step=st.integers(1, 2**63 - 1), loss=_numbers, lr=_finite, grad_norm=_numbers, tokens=_counts,
            tokens_per_second=_finite, memory_bytes=st.none() | _counts, skipped=_counts,
        ),
        max_size=5, unique_by=lambda one: one.step,
    )
)  # fmt: skip
def test_what_is_appended_is_read_numbers_that_json_has_none_for_included(rows: list[TelemetryRow]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name) / "t", *sorted(rows, key=lambda one: one.step))
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=lambda constant: pytest.fail(constant))
        found = read_telemetry(path)
    assert found.torn is None
    assert list(map(repr, found.rows)) == list(map(repr, sorted(rows, key=lambda one: one.step)))  # NaN is not equal to itself


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "t", row(1, loss=math.nan, grad_norm=math.inf), row(2, loss=-math.inf))
    first, second = read_telemetry(path).rows
    assert math.isnan(first.loss)
    assert (first.grad_norm, second.loss) == (math.inf, -math.inf)
    for wrong in ({"loss": "nan"}, {"loss": "1.5"}, {"lr": "NaN"}, {"tokens_per_second": "Infinity"}):
        path.write_text(json.dumps(json.loads(row(1).model_dump_json()) | wrong) + "\n")
        with pytest.raises(ContractError, match=next(iter(wrong))):
            read_telemetry(path)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "t", row(1), row(2), row(3))
    path.write_bytes(path.read_bytes()[:-cut])
    found = read_telemetry(path)
    assert [one.step for one in found.rows] == [1, 2]
    assert found.torn == 3


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_came_after_it(tmp_path: Path) -> None:
    path = written(tmp_path / "t", *(row(step) for step in range(1, 8)))
    path.write_bytes(path.read_bytes()[:-5])
    written(path, row(5, loss=1.25), row(6), after_step=4)
    found = read_telemetry(path)
    assert [one.step for one in found.rows] == [1, 2, 3, 4, 5, 6]
    assert found.rows[4].loss == 1.25
    assert found.torn is None


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "null", '{"step": 1, "step": 2}', "{", "\x00", "[" * 9000, '{"loss": NaN}', "x" * (MAX_LINE + 10)]
)
@pytest.mark.parametrize("where", [1, 2])
def test_any_other_line_that_is_no_row_is_refused_by_its_number(tmp_path: Path, line: str, where: int) -> None:
    path = written(tmp_path / "t", row(1), row(2))
    lines = path.read_text().splitlines()
    lines.insert(where - 1, line)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises((ContractError, ContractErrors)) as error:
        read_telemetry(path)
    assert f"{path}:{where}" in refused(error)


def test_steps_must_ascend_and_a_row_s_schema_must_be_known(tmp_path: Path) -> None:
    line = row(2).model_dump_json() + "\n"
    for text, place in ((line * 2, "t:2: step"), (line.replace('"schema_version":1', '"schema_version":2'), "schema_version")):
        (tmp_path / "t").write_text(text)
        with pytest.raises(ContractError, match=place):
            read_telemetry(tmp_path / "t")
    with pytest.raises(ContractError, match="no such file"):
        read_telemetry(tmp_path / "none")
    (tmp_path / "mine").write_text("my notes\n")
    with pytest.raises(ContractError):
        TelemetryWriter(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "my notes\n"


@given(
    content=st.binary(max_size=60)
    | st.lists(st.sampled_from(['{"step":', "1", "}", "\n", '"', "[", "\ud7ff"])).map(lambda it: "".join(it).encode())
)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "t").write_bytes(content)
        read_or_refused(read_telemetry, Path(name) / "t")
