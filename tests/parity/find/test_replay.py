"""A failing run writes files, and each file shows its failure again: where a stack is missing too, and in words where it can't."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.worker.answers import Answer
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cli, workers
from parity.commands.options import failures_folder
from parity.find import preserve, stored
from parity.find.stored import Failure, Record
from parity.workers import sets
from tests.parity.numpy_stack import CAPABILITIES, SPOILT, InProcess, configure

FEW = 12
"""Examples that a failure is shrunk by: how small it gets is not the question here."""

QUICK = ("--stacks", "one,two", "--profile", "quick")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: object
    out: str
    err: str


Parity = Callable[..., Done]


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """The command in this process, in a folder with two stacks in NumPy."""
    configure(tmp_path, one=[], two=[])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("parity.commands.run.failures_folder", lambda given: failures_folder(given or tmp_path / "cache" / "failures"))
    monkeypatch.setattr("parity.engine.SHRINK_EXAMPLES", FEW)
    monkeypatch.setattr(workers, "sets", here)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return Done(stopped.value.code, told.out, told.err)

    return run


class Here(InProcess):
    """A stack in this process: what starts one is not the question here."""

    def __init__(self, name: str, device: str) -> None:
        super().__init__(name, SPOILT[device])

    def request(self, request: str) -> Answer:
        """What a device that is not the default is asked."""
        assert request == "probe"
        return Answer({"dtypes": ["float32", "float64"]}, {})


@contextlib.contextmanager
def here(
    count: int, chosen: Mapping[str, tuple[StackInfo, str]], mutants: Sequence[str] = (), *, own_run: bool = False
) -> Iterator[list[Mapping[str, Here | StackProcess]]]:
    """As workers.sets; a device that ends its process gets one."""
    dying = {name: one for name, one in chosen.items() if one[1] == "DIES"}
    with sets(count, dying, mutants) as made:
        yield [
            {name: processes[name] if name in dying else Here(name, device) for name, (_, device) in chosen.items()} for processes in made
        ]


def uninstall(folder: Path, *names: str) -> None:
    """From now on these stacks need a package that is not installed."""
    (folder / "absent.json").write_text(CAPABILITIES.model_copy(update={"packages": ("frobnicate",)}).model_dump_json())
    tables = (folder / "parity.toml").read_text().split("\n\n")
    changed = [table.replace('"capabilities.json"', '"absent.json"') if table.split("]")[0][8:] in names else table for table in tables]
    (folder / "parity.toml").write_text("\n\n".join(changed))


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run with a wrong matmul in stack two says, and the folder with its files."""
    folder = tmp_path_factory.mktemp("red")
    configure(folder, one=[], two=[])
    arguments = ["run", "--only", "a.matmul", *QUICK, "--device", "two=BF16", "--reproducers", "red"]
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.chdir(folder)
        patch.setattr("parity.engine.SHRINK_EXAMPLES", FEW)
        patch.setattr(workers, "sets", here)
        patch.setattr(sys, "argv", ["parity", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 1
    return told.getvalue(), folder / "red"


@pytest.fixture
def files(red: tuple[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Question and dtype -> a copy of the file of that cell."""
    shutil.copytree(red[1], tmp_path / "red")
    return {"-".join(path.name.split("-")[1:3]): path for path in (tmp_path / "red").iterdir()}


def test_a_red_run_names_its_files(red: tuple[str, Path]) -> None:
    assert red[0].count("replay: parity replay red/a.matmul-") == 3
    assert "import numpy" not in red[0], "the snippet says the same"


def test_each_failing_cell_has_a_file_that_fails(parity: Parity, files: dict[str, Path]) -> None:
    assert set(files) == {"same_function-float64", "precision-float64", "precision-float32"}
    done = parity("replay", *files.values())
    assert (done.code, done.err) == (1, "")
    assert done.out.count("FAILS AS STORED") == 3
    assert done.out.count("answers bit for bit as then; the same packages as then: numpy") == 4
    assert done.out.count("passed then, passes now: matmul") == 3
    assert done.out.count("parity explain a.matmul") == 3
    assert max(len(text.splitlines()) for text in done.out.split("\n\na.matmul")) <= 24, "one screen each"


def test_a_stack_that_was_mended_passes(parity: Parity, files: dict[str, Path]) -> None:
    done = parity("replay", files["precision-float32"], "--device", "two=CPU")
    assert (done.code, done.err) == (0, "")
    assert "PASSES NOW" in done.out
    assert "two (BF16 then)" in done.out


def test_the_other_stack_need_not_be_installed(parity: Parity, files: dict[str, Path], tmp_path: Path) -> None:
    uninstall(tmp_path, "one")
    done = parity("replay", files["same_function-float64"])
    assert (done.code, done.err) == (1, "")
    assert "one was not asked: its answers are the file's (numpy " in done.out
    assert "passed then, passes now" in done.out, "with the other's answers to the neighbour, which are in the file too"
    assert parity("replay", files["same_function-float64"], "--device", "two=CPU").code == 0


def test_the_failing_stack_must_be_installed(parity: Parity, files: dict[str, Path], tmp_path: Path) -> None:
    """Else the file's wrong answers would be held against the right stack, which proves nothing of either."""
    uninstall(tmp_path, "two")
    done = parity("replay", files["same_function-float64"])
    assert done.code == 4
    assert "needs the stack two, and frobnicate is not installed here; run: pip install 'twostack[dev]'" in done.err
    assert "--stacks one asks the other one, whose answers were right" in done.err
    done = parity("replay", files["same_function-float64"], "--stacks", "one")
    assert done.code == 1
    assert "two was not asked: its answers are the file's" in done.out
    assert "the reference found these wrong" in done.out
    done = parity("replay", files["same_function-float64"], "--stacks", "two")
    assert done.code == 4


def test_only_the_failing_stack_is_suspected(files: dict[str, Path]) -> None:
    then = stored.read(files["same_function-float64"]).record.stacks
    assert [(stack.name, stack.suspect) for stack in then] == [("one", False), ("two", True)]


def test_another_failure_is_exit_3(parity: Parity, files: dict[str, Path]) -> None:
    """A gradient is wrong then, and y now: no verdict on what was stored."""
    path = rewritten(files["precision-float32"], failed=stored.Kind(tensor="a_grad", unit="absolute difference"))
    done = parity("replay", path)
    assert done.code == 3
    assert "FAILS OTHERWISE" in done.out
    assert "now wrong: y: absolute difference" in done.out
    for device, told in (("DIES", "the worker ended with exit code 7"), ("SHAPE", "answered y as float32")):
        done = parity("replay", files["precision-float32"], "--device", f"two={device}")
        assert done.code == 3
        assert told in done.out


def test_a_neighbour_that_fails_is_exit_3(parity: Parity, files: dict[str, Path]) -> None:
    """The failing input taken for the neighbour, on a stack that is wrong, and an input that is right for the failing one."""
    failure = stored.read(files["precision-float32"])
    assert failure.neighbour is not None
    record = failure.record.model_copy(update={"case": failure.record.neighbour, "neighbour": failure.record.case})
    path = stored.write(
        files["precision-float32"].parent, dataclasses.replace(failure, record=record, case=failure.neighbour, neighbour=failure.case)
    )
    done = parity("replay", path)
    assert done.code == 3
    assert "PASSES NOW, on 1 stack asked, BUT ITS NEIGHBOUR FAILS" in done.out


def rewritten(path: Path, **fields: Any) -> Path:
    failure = stored.read(path)
    return stored.write(path.parent, dataclasses.replace(failure, record=failure.record.model_copy(update=fields)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"check": "a.matmull"}, "asks a.matmull precision in float32, which this version does not ask; it was written by twostack"),
        ({"dtype": "bfloat16"}, "asks a.matmul precision in bfloat16, which this version does not ask"),
        ({"asked": "0" * 64}, "a.matmul asks otherwise in this version; it was written by twostack 0.0.1, and this is"),
        ({"check": "a.softmax"}, "holds no case that can be asked|asks otherwise|can't judge"),
        ({"mutants": ("torch-of-yore",)}, "there is no mutant 'torch-of-yore'"),
    ],
)
def test_a_file_of_another_version_is_refused_in_words(parity: Parity, files: dict[str, Path], fields: dict[str, Any], told: str) -> None:
    done = parity("replay", rewritten(files["precision-float32"], twostack="0.0.1", **fields))
    assert done.code == 2
    assert re.search(told, done.err), done.err
    assert done.err.count("\n") == 1


def test_a_case_that_the_check_does_not_ask_of_is_refused_in_words(parity: Parity, files: dict[str, Path]) -> None:
    """A file may name any check: here one whose cases are graphs."""
    done = parity("replay", rewritten(files["precision-float32"], check="e.saved"))
    assert done.code == 2
    assert "holds no case that can be asked (AssertionError" in done.err
    assert done.err.count("\n") == 1


def test_a_stack_that_is_not_here_is_exit_4(parity: Parity, files: dict[str, Path], tmp_path: Path) -> None:
    configure(tmp_path, one=[])
    done = parity("replay", files["precision-float32"])
    assert done.code == 4
    assert "needs the stack two, which is not here; run in the folder whose parity.toml names it" in done.err
    assert parity("replay", files["precision-float32"], "--stacks", "three").code == 2
    assert "name one of these" in parity("replay", files["precision-float32"], "--stacks", "one").err


def test_one_bad_file_of_several_does_not_hide_the_others(parity: Parity, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    done = parity("replay", "bad.safetensors", files["precision-float32"])
    assert done.code == 2
    assert "FAILS AS STORED" in done.out
    assert done.err.count("\n") == 1


def test_a_checkpoint_that_is_not_here_is_exit_4(
    parity: Parity, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failure = stored.read(files["precision-float32"])
    weight = stored.WeightOf(sha256="ab" * 32, tensor="w")
    case = failure.record.case.model_copy(update={"weights": {"real": weight}})
    record = failure.record.model_copy(update={"case": case, "model": "smollm2-135m"})
    path = stored.write(tmp_path, dataclasses.replace(failure, record=record))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    done = parity("replay", path)
    assert done.code == 4
    assert "finetune fetch smollm2-135m" in done.err


def test_without_a_folder_files_go_to_the_cache(parity: Parity, tmp_path: Path) -> None:
    assert parity("run", "--only", "a.matmul_random", *QUICK, "--device", "two=BF16").code == 1
    (path,) = (tmp_path / "cache" / "failures").iterdir()
    assert parity("replay", path).code == 1


def test_a_folder_that_is_none_or_can_not_be_written(parity: Parity, tmp_path: Path) -> None:
    (tmp_path / "red").write_text("a file")
    done = parity("run", "--only", "a.matmul", *QUICK, "--device", "two=BF16", "--reproducers", "red")
    assert (done.code, done.err) == (2, "parity: --reproducers is red, a file; give a folder\n")
    done = parity("run", "--only", "a.matmul_random", *QUICK, "--device", "two=BF16", "--reproducers", "red/deeper")
    assert done.code == 1, "the verdict stands"
    assert "no file to replay: red/deeper can't be written (Not a directory); give another with --reproducers" in done.out


def test_a_green_run_writes_nothing(parity: Parity, tmp_path: Path) -> None:
    assert parity("run", "--only", "a.matmul_random", *QUICK, "--reproducers", "red").code == 0
    assert not (tmp_path / "red").exists()


def test_a_file_that_does_not_fail_again_is_not_offered(parity: Parity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the failure hangs on what was asked before it: here what is read is another case than what was written."""
    real = stored.read

    def other(path: Path) -> Failure:
        read = real(path)
        zeros = {name: np.zeros_like(np.asarray(array)) for name, array in read.case.tensors.items()}
        return dataclasses.replace(read, case=dataclasses.replace(read.case, tensors=zeros))

    monkeypatch.setattr(preserve.stored, "read", other)
    done = parity("run", "--only", "a.matmul_random", *QUICK, "--device", "two=BF16", "--reproducers", "red")
    assert done.code == 1
    assert (
        "no file to replay: asked again from its file, y (root mean square) is within its bound: what made it fail is not in the case"
        in done.out
    )
    assert "import numpy" in done.out, "then the snippet is shown"
    assert not (tmp_path / "red").exists() or not list((tmp_path / "red").iterdir())


def test_so_many_files_and_no_more(parity: Parity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preserve, "MOST_FILES", 1)
    done = parity("run", "--only", "a.matmul", *QUICK, "--device", "two=BF16", "--reproducers", "red")
    assert len(list((tmp_path / "red").iterdir())) == 1
    assert (
        done.out.count("no file to replay: this run has written 1 others; to have one of this cell, run: parity run --only a.matmul") == 2
    )


def test_a_copied_file_needs_no_name(parity: Parity, files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["precision-float32"], tmp_path / "from-ci.safetensors")
    assert parity("replay", "from-ci.safetensors").code == 1


def test_records_say_where_they_are_from(files: dict[str, Path]) -> None:
    record: Record = stored.read(files["precision-float32"]).record
    assert (record.check, record.question, record.dtype, record.profile, record.seed) == (
        "a.matmul",
        "precision",
        "float32",
        "quick",
        20230523,
    )
    assert record.machine == preserve.machine()
    assert record.stacks[0].versions.keys() == {"numpy"}
    assert record.again.startswith("parity run --only a.matmul --stacks two --device two=BF16")
