"""docs/contract.md: the tables of fields are the models', and its commands run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from contract import cli
from contract.run.reference import BEGIN, END, allowed, fields, reference, sections, with_reference
from contract.run.source import read_contract
from tests.contract.run.contract_draws import FIELDS

PAGE = Path(__file__).parents[3] / "docs" / "contract.md"
AGAIN = (
    'python -c "from pathlib import Path; from contract.run.reference import with_reference; '
    "page = Path('docs/contract.md'); page.write_text(with_reference(page.read_text(encoding='utf-8')), encoding='utf-8')\""
)


def test_the_page_holds_the_models_own_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_reference(text) == text, f"write it anew: {AGAIN}"
    assert text.count(BEGIN) == text.count(END) == 1


def test_every_field_has_a_row_and_says_what_it_means() -> None:
    documented = [field for section, model in sections() for field in fields(section, model)]
    assert sorted(field.path for field in documented) == sorted(".".join(path) for path in FIELDS)
    assert all(field.meaning and field.allowed for field in documented)
    assert [field.path for field in documented if field.required] == ["data.train_file"]
    tables = reference()
    assert all(f"| `{field.path}` |" in tables for field in documented)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("adapter", "rank"), "integer >= 1, <= 65536"),
        (("exec", "seed"), "integer >= 0, <= 2^63 - 1"),
        (("adapter", "dropout"), "number >= 0, < 1"),
        (("lane",), "production | research"),
        (("contract_version",), "1"),
        (("quant", "double_quant"), "true | false"),
        (("exec", "proxy_max_layers"), "integer >= 0, <= 2^31 - 1 or null"),
        (("data", "train_file"), "a line of 1 to 4,096 characters"),
        (("adapter", "target_modules"), "list of text that matches ^[A-Za-z0-9_.]{1,128}$"),
        (("adapter", "alpha_pattern"), "mapping of names that match ^[A-Za-z0-9_.]{1,128}$ to number > 0, <= 1000000000"),
    ],
)
def test_what_is_allowed_in_words(path: tuple[str, ...], words: str) -> None:
    assert allowed(FIELDS[path]) == words


def test_the_pages_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) >= 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert (caught.value.code, capsys.readouterr().err) == (0, ""), command


def test_the_pages_smallest_contract_is_one(tmp_path: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert read_contract(tmp_path / "run.yaml").model.hf_repo == "smollm2-135m"
