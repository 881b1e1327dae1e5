"""The file of a failure: what goes in comes out, bit for bit; what is no such file is refused in words."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import Phase

from contract.errors import UserError
from contract.worker.files import FileReference
from parity import drawing
from parity.checks import packed as packing
from parity.checks import registry
from parity.checks.check import Case, Check
from parity.checks.graph_case import GraphCase
from parity.checks.graph_packed import smaller
from parity.checks.packed import CanNotTravel, Packed
from parity.find import judging, stored
from parity.find.preserve import machine
from parity.find.stored import Failure, Kind, Record, StackThen, TooLarge
from tests.parity.graph_stack import small_case

SHA256 = "ab" * 32
TENSORS = {
    "float32.a": np.array([[1.5, -0.0], [np.nan, np.inf]], np.float32),
    "float32.labels": np.array([3, -100]),
    "float32.narrow": np.array([1.0, 2.0**-130]).astype(ml_dtypes.bfloat16),
    "float32.scalar": np.array(2.5),
}


def record(**changes: Any) -> Record:
    """A record of a matmul."""
    fields: dict[str, Any] = {
        "twostack": "0.1.0", "machine": machine(),
        "stacks": [StackThen(name="one", device="CPU", versions={"numpy": "1"}, suspect=True)], "check": "a.matmul",
        "question": "precision", "dtype": "float32", "failed": Kind(tensor="y", unit="absolute difference"), "place": "y", "where": (0, 1),
        "got": float("nan"), "wanted": 1.0, "observed": float("inf"), "bound": 0.5, "bound_source": "a test", "false_alarm": 1e-9,
        "asked": "0", "kept": None, "profile": "quick", "seed": 7, "mutants": (), "model": "", "again": "parity run", "neighbour": None,
        "case": stored.describe(packed_case()), **changes,
    }  # fmt: skip
    return Record(**fields)


def packed_case() -> Packed:
    return Packed(kind="primitive", fields={"name": "a case", "attrs": {"eps": 1e-6}}, tensors=TENSORS)


def failure(**changes: Any) -> Failure:
    return Failure(
        record=record(**changes), case=packed_case(), answers={"one": [{"y": np.ones(3)}, {"y": np.zeros(1), "z.w": np.ones(2)}]}
    )


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = stored.write(tmp_path, failure())
    assert path.name == f"a.matmul-precision-float32-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.safetensors"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    read = stored.read(path)
    assert read.record.model_dump_json() == record().model_dump_json()
    assert set(read.case.tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert same(np.asarray(read.case.tensors[name]), array)
    assert [sorted(answer) for answer in read.answers["one"]] == [["y"], ["y", "z.w"]]


def test_the_same_failure_has_the_same_name(tmp_path: Path) -> None:
    assert stored.write(tmp_path, failure()) == stored.write(tmp_path, failure())
    assert stored.write(tmp_path, failure(observed=2.0)) != stored.write(tmp_path, failure())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_weight_of_a_checkpoint_is_named_without_its_path(tmp_path: Path) -> None:
    reference = FileReference(sha256=SHA256, tensor="w", path="/home/somebody/w.safetensors", start=2, stop=4, transposed=True)
    packed = Packed(kind="primitive", fields={"name": "a", "attrs": {}}, tensors={"real": reference})
    path = stored.write(tmp_path, Failure(record=record(case=stored.describe(packed)), case=packed, answers={"one": []}))
    assert b"somebody" not in path.read_bytes()
    read = stored.read(path).case
    assert stored.resolved(read, {SHA256: "/elsewhere"}).tensors["real"] == FileReference(
        sha256=SHA256, tensor="w", path="/elsewhere", start=2, stop=4, transposed=True
    )
    with pytest.raises(KeyError):
        stored.resolved(read, {})


def test_over_1_mb_there_is_no_file(tmp_path: Path) -> None:
    large = Packed(kind="primitive", fields={}, tensors={"float32.a": np.zeros(stored.MOST_BYTES // 4 - 100, np.float32)})
    stored.require_size(large, {})
    with pytest.raises(TooLarge, match="and 1,000,000 are allowed"):
        stored.write(tmp_path, Failure(record=record(case=stored.describe(large)), case=large, answers={}))
    with pytest.raises(TooLarge):
        stored.require_size(large, {"one": [{"y": np.zeros(100)}]})
    assert not list(tmp_path.iterdir())


def drawn(check: Check) -> Case:
    """A case of a check, the first that it has."""
    if check.cases is None:
        assert check.fixed_cases is not None
        return next(iter(check.fixed_cases()))
    found: list[Case] = []
    drawing.draw(check, found.append, 1, 5, (Phase.generate,))
    return found[0]


OWN = [check for check in registry.CHECKS if check.cases is not None and (check.operations or check.tier == "C")]


@pytest.mark.parametrize("check", OWN, ids=lambda check: check.id)
def test_every_drawn_case_travels(check: Check, tmp_path: Path) -> None:
    """Made again from its file a case asks the same, to the bit."""
    case = drawn(check)
    packed = case.pack()
    path = stored.write(tmp_path, Failure(record=record(case=stored.describe(packed)), case=packed, answers={}))
    again = packing.unpack(stored.read(path).case)
    assert again.name == case.name
    for plan in check.plans:
        assert judging.digest(plan.requests(again)) == judging.digest(plan.requests(case))
    assert arrays(again).keys() == arrays(case).keys()
    assert all(same(array, arrays(again)[name]) for name, array in arrays(case).items())


def arrays(case: Case) -> dict[str, np.ndarray]:
    found = {f"{dtype} {name}": array for dtype, own in case.inputs.items() for name, array in own.items()}
    if isinstance(case, GraphCase):
        found |= {f"weight {name}": weight for name, weight in case.weights.items() if isinstance(weight, np.ndarray)}
        found |= {f"adapter {name}": matrix for name, matrix in case.adapter.items()}
        found |= {f"batch {name}": array for name, array in case.batch.tensors().items()}
    return found


def test_a_case_that_nothing_packs_says_so() -> None:
    class Strange(Case):
        pass

    with pytest.raises(CanNotTravel, match="of the kind Strange can't be packed"):
        Strange(name="a", inputs={}).pack()
    with pytest.raises(CanNotTravel, match=r"no case of the kind 'pickle'; allowed: .*graph"):
        packing.unpack(Packed(kind="pickle", fields={}, tensors={}))


# What is no such file


def content(metadata: dict[str, str] | None, **tensors: np.ndarray) -> bytes:
    return safetensors.numpy.save({name.replace("__", "/"): array for name, array in tensors.items()} or {"case/a": np.ones(1)}, metadata)


def changed(**fields: Any) -> bytes:
    own = json.loads(record().model_dump_json()) | fields
    return content({"twostack": json.dumps({name: value for name, value in own.items() if value is not ...})})


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got 0 bytes"),
    "no safetensors": (b"PK\x03\x04" * 100, "a header of"),
    "a pickle": (b"\x80\x04\x95" + b"." * 200, "got"),
    "too large": (b"\0" * (stored.MOST_BYTES + 1), "got 1,000,001 bytes; allowed: 1,000,000 at most"),
    "a header that is longer than the file": ((2**40).to_bytes(8, "little") + b"{}", "got"),
    "terabytes announced": (
        with_header(b'{"case/a":{"dtype":"F64","shape":[1000000,1000000],"data_offsets":[0,8000000000000]}}'), "by its header",
    ),
    "a name twice": (with_header(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}"), "twice"),
    "nested deep": (with_header(b'{"__metadata__":' + b"[" * 100_000), "got"),
    "no record": (content(None), "without a failure in it"),
    "another program's": (content({"format": "pt"}), "without a failure in it"),
    "no JSON": (content({"twostack": "{"}), "allowed: JSON"),
    "a later format": (changed(schema_version=2), "a failure in format 2; this version reads 1; replay it with the version that wrote it"),
    "a list": (content({"twostack": "[]"}), "a failure in format None"),
    "a field too many": (changed(run="rm -rf"), "record, 'run': Extra inputs are not permitted"),
    "a field too few": (changed(asked=...), "record, 'asked': Field required"),
    "a path for a weight": (
        changed(case={"kind": "primitive", "fields": {}, "weights": {"real": {"sha256": SHA256, "tensor": "w", "path": "/etc/passwd"}}}),
        "Extra inputs are not permitted",
    ),
    "a hash that is a path": (
        changed(case={"kind": "primitive", "fields": {}, "weights": {"real": {"sha256": "../../x", "tensor": "w"}}}),
        "should match pattern",
    ),
    "no stack": (changed(stacks=[]), "record, 'stacks'"),
    "a false alarm for certain": (changed(false_alarm=1.0), "record, 'false_alarm'"),
    "a tensor from elsewhere": (content({"twostack": record().model_dump_json()}, stuff=np.ones(1)), "has a tensor 'stuff'"),
    "an answer of a stranger": (content({"twostack": record().model_dump_json()}, answer__two__0__y=np.ones(1)), "has an answer 'two/0/y'"),
    "an answer of number 10^9": (
        content({"twostack": record().model_dump_json()}, answer__one__1000000000__y=np.ones(1)), "has an answer 'one/1000000000/y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_such_file_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    written, message = HOSTILE[name]
    path = tmp_path / "failure.safetensors"
    path.write_bytes(written)
    with pytest.raises(UserError) as raised:
        stored.read(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "a folder"), (tmp_path / "nothing", "no such file")):
        with pytest.raises(UserError, match=message):
            stored.read(path)


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = stored.write(tmp_path, failure())
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="its content is not the one that its name gives"):
        stored.read(path)
    plain = tmp_path / "renamed.safetensors"
    plain.write_bytes(damaged)
    assert stored.read(plain).record.check == "a.matmul"


def plan_of(**layout: Any) -> Callable[[Packed], Packed]:
    def change(packed: Packed) -> Packed:
        plan = packed.fields["plan"]
        return Packed(
            kind="graph", fields={**packed.fields, "plan": {**plan, "layout": {**plan["layout"], **layout}}}, tensors=packed.tensors
        )

    return change


def lora_of(**lora: Any) -> Callable[[Packed], Packed]:
    def change(packed: Packed) -> Packed:
        plan = {**packed.fields["plan"], "lora": {"alpha": 1.0, **lora}}
        return Packed(kind="graph", fields={**packed.fields, "plan": plan}, tensors=packed.tensors)

    return change


def without(name: str) -> Callable[[Packed], Packed]:
    def change(packed: Packed) -> Packed:
        return Packed(kind="graph", fields=packed.fields, tensors={key: it for key, it in packed.tensors.items() if key != name})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lora_of(rank=2**24), "a rank is 16777216; allowed: 1024 at most"),
        (lora_of(rank=1, rank_pattern={"q_proj": 2**24}), "a rank is 16777216"),
        (plan_of(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000; allowed: 0 to 1024"),
        (plan_of(num_hidden_layers="many"), "num_hidden_layers is 'many'"),
        (plan_of(vocab_size=10**9), "weights: embedding is float32"),
        (plan_of(num_hidden_layers=1000), "missing"),
        (without("weight.final_norm"), "final_norm is missing"),
        (without("adapter.layers.0.q_proj.lora_a"), "missing"),
        (without("batch.ids"), "ids"),
        (lambda packed: Packed(kind="graph", fields={**packed.fields, "seed": -1}, tensors=packed.tensors), "seed is -1"),
        (
            lambda packed: Packed(
                kind="graph", fields=packed.fields, tensors={**packed.tensors, "weight.final_norm": FileReference(
                    sha256=SHA256, tensor="w", path="/nowhere")}
            ),
            "no such file",
        ),
    ],
)  # fmt: skip
def test_a_graph_that_is_none_is_refused(change: Callable[[Packed], Packed], message: str) -> None:
    with pytest.raises(judging.NOT_A_CASE, match=message):
        packing.unpack(change(small_case().pack()))


def test_smaller_graphs_keep_the_sequence_that_fails() -> None:
    case = small_case()
    sequences, tokens = case.batch.ids.shape
    found = list(smaller(case, (1, 0, 0)))
    assert [one.batch.ids.shape for one in found][:2] == [(1, tokens), (1, tokens // 2)]
    assert all(np.array_equal(one.batch.ids[0], case.batch.ids[1, : one.batch.ids.shape[1]]) for one in found)
    assert all((one.batch.labels[:, 1:] != -100).any() for one in found)
    assert sequences > 1
    assert not [one for one in itertools.islice(smaller(found[-1], ()), 9) if one.batch.ids.shape == found[-1].batch.ids.shape]
