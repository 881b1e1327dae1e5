"""Contract files that are not what they should be: read, or refused with a ContractError, and soon."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError, ContractErrors
from contract.run.digest import digest
from contract.run.source import MAX_BYTES, read_contract
from tests.contract.run.contract_files import SUFFIXES, faults, written

DEEP = 10_000
HOSTILE = {
    "bom": (b"\xef\xbb\xbf{}", "a byte order mark"),
    "utf-16": ("a: 1".encode("utf-16"), "which is no UTF-8"),
    "latin-1": (b"a: \xe9", "byte 0xe9 at offset 3, which is no UTF-8"),
    "nul": (b"a: \0", "got"),
    "too large": (b" " * (MAX_BYTES + 1), "1,048,576 at most"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", HOSTILE)
def test_bytes_that_are_no_text(tmp_path: Path, suffix: str, case: str) -> None:
    content, message = HOSTILE[case]
    assert message in faults(tmp_path, content, suffix=suffix)[0]


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".yaml", "[" * DEEP, "nested too deep"),
        (".yaml", "- " * DEEP, "nested too deep"),
        (".yaml", "{a: " * DEEP, "nested too deep"),
        (".yaml", "\n".join(" " * depth + "a:" for depth in range(300)), "run.yaml:34: a.a.a: got values nested too deep"),
        (".json", "[" * DEEP + "]" * DEEP, "nested too deep"),
        (".json", '{"a":' * DEEP + "1" + "}" * DEEP, "nested too deep"),
        (".json", '{"a":' * 40 + "1" + "}" * 40, "run.json:1: a.a.a: got values nested too deep"),
        (".toml", "a = " + "[" * DEEP + "]" * DEEP, "nested too deep"),
        (".toml", "a." * DEEP + "a = 1", "run.toml:1: got values nested too deep"),
        (".toml", "x = 1\n[" + '"a" . ' * DEEP + "a]", "run.toml:2: got values nested too deep"),
        (".toml", "x = {" + "a." * DEEP + "a = 1}", "nested too deep"),
        (".json", '{"lane": "production", "lane": "research"}', "'lane' twice"),
        (".toml", 'lane = "production"\nlane = "research"', "Cannot overwrite a value"),
        (".json", '{"exec": {"seed": NaN}}', "got NaN"),
        (".json", '{"exec": {"seed": 1e999}}', "the number '1e999'"),
        (".json", '{"exec": {"seed": ' + "9" * 4000 + "}}", "run.json:1: exec.seed: got an integer of 13288 bits"),
        (".json", '{"exec": {"adapter_tag": "\\ud800"}}', "half of a surrogate pair"),
        (".json", '{"exec": {"adapter_tag": "a\\u0000"}}', r"run.json:1: exec.adapter_tag: got 'a\x00'; allowed: text without NUL"),
        (".json", "[1]", "got [1]; allowed: a mapping"),
        (".json", "", "text that is no JSON"),
        (".toml", "exec.seed = nan", "exec.seed: got nan; allowed: a finite number"),
        (".toml", "exec.seed = inf", "exec.seed: got inf; allowed: a finite number"),
        (".toml", "exec.seed = 2026-01-31", "exec.seed: got '2026-01-31'; allowed: no date or time"),
        (".toml", "exec.seed = 07:32:00", "exec.seed: got '07:32:00'; allowed: no date or time"),
        (".toml", "exec.seed = 0x" + "f" * 5000, "exec.seed: got an integer of 20000 bits"),
        (".toml", "exec.seed = " + "1" * 5000, "a number of thousands of digits"),
        (".toml", "a = [\n}", "no TOML"),
        (".yaml", "5", "got 5; allowed: a mapping"),
    ],
)
def test_hostile_files(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    assert any(message in fault for fault in faults(tmp_path, text, suffix=suffix)), message


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "".join(f"k{number}: 1\n" for number in range(100_000))),
        (".yaml", "k: 1\n" * 200_000),
        (".yaml", "!" * MAX_BYTES),
        (".yaml", ("!" * 60_000 + " a\n") * 16),
        (".yaml", "a: [" + "1," * 500_000 + "1]"),
        (".toml", "".join(f"k{number} = 1\n" for number in range(80_000))),
        (".toml", "x = 1\n" + "a." * (MAX_BYTES // 2 - 10) + "a = 1"),
        (".json", "{" + ",".join(f'"k{number}":1' for number in range(80_000)) + "}"),
    ],
)
def test_a_megabyte_is_no_hang_and_says_no_more_than_a_hundred_things(tmp_path: Path, suffix: str, text: str) -> None:
    start = time.monotonic()
    assert len(faults(tmp_path, text, suffix=suffix)) <= 100
    assert time.monotonic() - start < 30  # without the guards minutes, hours


VALID = {
    ".yaml": 'model: {hf_repo: m}\ndata:\n  train_file: "t.jsonl"\nadapter: {rank: 8, target_modules: [q_proj]}\nexec: {seed: 7}\n',
    ".toml": 'model.hf_repo = "m"\n[data]\ntrain_file = "t.jsonl"\n[adapter]\nrank = 8\ntarget_modules = ["q_proj"]\n[exec]\nseed = 7\n',
    ".json": '{"model": {"hf_repo": "m"}, "data": {"train_file": "t.jsonl"}, "adapter": {"rank": 8, "target_modules": ["q_proj"]}}',
}
SPLICES = [
    *("[", "]", "{", "}", ":", ": ", ",", "\n", "\n\n", " ", "\t", "#", " #", '"', "'", "|", ">", "&a ", "*a", "!", "!!int "),
    *("%YAML 1.1\n", "---\n", "...\n", "<<: ", "? ", "- ", "null", "~", "true", "1e999", ".nan", "0x", "-0", "1.5", "9" * 70),
    *("2026-01-31", "\\u0000", "\\ud800", "\\x", "\x00", "\x85", "\u2028", "\ufeff", "é", "😀", "\r", "=", ".", "a.b", "[[", "]]"),
    *("'''", '"""', "rank", "exec", "NaN", "inf"),
]  # fmt: skip


@given(
    suffix=st.sampled_from(sorted(VALID)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(SPLICES)), min_size=1, max_size=6),
)
def test_near_valid_files_are_read_or_refused(suffix: str, edits: list[tuple[float, int, str]]) -> None:
    text = VALID[suffix]
    for place, drop, splice in edits:
        start = int(place * len(text))
        text = text[:start] + splice + text[start + drop :]
    read_or_refused(text.encode(), suffix)


@given(
    suffix=st.sampled_from(sorted(VALID)),
    content=st.binary(max_size=200) | st.lists(st.sampled_from(SPLICES)).map(lambda some: "".join(some).encode()),
)
def test_any_bytes_are_read_or_refused(suffix: str, content: bytes) -> None:
    read_or_refused(content, suffix)


def read_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), content, suffix=suffix)
        refusals: tuple[ContractError, ...] = ()
        try:
            assert len(digest(read_contract(path))) == 64
        except ContractError as refusal:
            refusals = (refusal,)
        except ContractErrors as several:
            refusals = several.faults
    assert all(fault.place.startswith(str(path)) and fault.got and fault.allowed and fault.remedy for fault in refusals)
    assert sum(len(str(fault)) for fault in refusals) < 200_000
