"""`parity promote` as a user meets it: exit codes, reports, the record that the planner reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from contract.artifacts.promotion import Binding, base_sha256, read_promotion, record_name
from contract.run.planner import ExecutionPlan, Refused, plan
from contract.run.survey import Options
from contract.worker.discover import version
from parity import cli
from parity.scorecard import promotion_record, simulated_cycles
from parity.scorecard.promotion_verdict import Verdict
from tests.contract.run import small_run
from tests.parity.scorecard import made_cycles as made

Promote = Callable[..., tuple[object, str, str]]
CODES = {"promote": 0, "reject": 10, "hold": 11, "invalid": 12}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    simulated_cycles.main(folder)
    return folder


@pytest.fixture
def promote(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Promote:
    """Runs the command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["parity", "promote", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


@pytest.mark.parametrize("verdict", CODES)
def test_the_shown_cycles_give_the_four_verdicts(promote: Promote, shown: Path, tmp_path: Path, verdict: str) -> None:
    cycles = sorted((shown / verdict).iterdir())
    code, out, err = promote(*cycles, "--json", "v.json", "--junit", "v.xml", "--markdown", "v.md")
    assert (code, err) == (CODES[verdict], "")
    assert out.rstrip().endswith(verdict.upper())
    read = Verdict.model_validate_json((tmp_path / "v.json").read_bytes())
    assert (read.decision, read.exit_code) == (verdict.upper(), CODES[verdict])
    root = ElementTree.parse(tmp_path / "v.xml").getroot()
    broken = int(root.get("failures", "0")) + int(root.get("errors", "0"))
    assert (broken == 0) == (verdict == "promote")
    assert (tmp_path / "v.md").read_text().startswith(f"# {verdict.upper()}\n")
    records = list((tmp_path / "promotions").glob("*")) if (tmp_path / "promotions").exists() else []
    assert len(records) == (verdict == "promote")


def test_the_markdown_has_the_deltas_and_the_answers(promote: Promote, shown: Path, tmp_path: Path) -> None:
    promote(*sorted((shown / "hold").iterdir()), "--markdown", "v.md")
    text = (tmp_path / "v.md").read_text()
    assert "| simulated-1 | semantics |" in text
    assert "| all | tokens |" in text
    assert "Is the production lane at a plateau?" in text
    assert "tasks would decide" in text
    widths = {line.count("|") for line in text[text.index("## Deltas") : text.index("## Flips")].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_reject_takes_back_what_was_promoted(promote: Promote, shown: Path, tmp_path: Path) -> None:
    """The same binding: its record says REJECT then. HOLD and INVALID leave it."""
    promote(*sorted((shown / "promote").iterdir()), "--json", "v.json")
    verdict = Verdict.model_validate_json((tmp_path / "v.json").read_bytes())
    [path] = (tmp_path / "promotions").iterdir()
    for decision, written, stays in (("HOLD", None, "PROMOTE"), ("INVALID", None, "PROMOTE"), ("REJECT", path, "REJECT")):
        found = promotion_record.record(verdict.model_copy(update={"decision": decision}), tmp_path / "promotions")
        assert found == written
        assert read_promotion(path).decision == stays


def test_one_cycle_is_invalid(promote: Promote, shown: Path) -> None:
    code, out, _ = promote(shown / "promote" / "simulated-1")
    assert code == 12
    assert "1 cycle(s), 2 needed" in out


def test_evidence_that_changed_is_invalid(promote: Promote, tmp_path: Path) -> None:
    folders = [made.written(cycle, tmp_path / cycle.name) for cycle in made.pair(tasks=40)]
    (folders[1] / "events.jsonl").write_text("another")
    code, out, _ = promote(*folders)
    assert code == 12
    assert "cycle second: changed or gone since it was judged: events.jsonl" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "nowhere"], "nowhere/cycle.json: got no such file"),
        (["nowhere", "--rule", "rule.yaml"], "rule.yaml: got no such file"),
        (["nowhere", "--json", "gone/v.json"], "gone/v.json can't be written"),
        (["nowhere", "--json", "v", "--junit", "v"], "named for two reports"),
    ],
)
def test_what_a_user_can_get_wrong(promote: Promote, words: list[str], said: str) -> None:
    code, _, err = promote(*words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_the_planner_takes_the_record(promote: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A production contract on a research stack: refused without the record, planned with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = small_run.make(tmp_path)
    contract = small_run.run_of(folder, stack="beta", adapter__method="lora", quant__base="none")
    options = Options(promotions=tmp_path / "promotions", device_memory=2**30, cache=tmp_path / "cache")
    stacks = small_run.stacks_in(folder)

    refused = plan(contract, stacks, options)
    assert isinstance(refused, Refused)
    assert [refusal.gate for refusal in refused.refusals] == ["research_lane"]

    packages = {name: version(name) or "not installed" for name in ("twostack", "numpy")}
    base = base_sha256([weights_sha256(folder)])
    binding = Binding(
        stack="beta", packages=packages, base_sha256=base, base="none", graph="full_causal", objective="chatml_supervised", suite="sql 1",
    )  # fmt: skip
    code, out, _ = promote(*(made.written(cycle, tmp_path / cycle.name) for cycle in made.bound(binding)))
    assert code == 0
    assert f"wrote promotions/{record_name(binding)}" in out
    assert isinstance(plan(contract, stacks, options), ExecutionPlan)


def weights_sha256(folder: Path) -> str:
    [shard] = (path for path in folder.rglob("*.safetensors"))
    return hashlib.sha256(shard.read_bytes()).hexdigest()


def test_reports_are_json_that_others_read(promote: Promote, shown: Path, tmp_path: Path) -> None:
    promote(*sorted((shown / "reject").iterdir()), "--json", "v.json")
    value = json.loads((tmp_path / "v.json").read_text())
    assert value["vetoes"]
    assert {one["scope"] for one in value["measured"]} == {"simulated-1", "simulated-2", "pooled"}
