"""Headers of safetensors files: what the library writes is read as it reads it, and what breaks the format is refused with its place."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from contract.errors import ContractError
from contract.model import headers

SOUND: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
    "empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [34, 34]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
}
SIZE = 42

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]


def write(path: Path, header: object, content: int = SIZE) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(content))
    return path


def refused(path: Path, message: str) -> ContractError:
    with pytest.raises(ContractError, match=message) as caught:
        headers.read(path)
    assert caught.value.place.startswith(str(path))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "model.safetensors"


# Sound


def test_a_sound_header(path: Path) -> None:
    tensors = headers.read(write(path, SOUND | {"__metadata__": {"format": "pt"}}))
    begin = path.stat().st_size - SIZE
    assert {key: (t.dtype, t.shape, t.start - begin, t.stop - begin, t.elements, t.nbytes) for key, t in tensors.items()} == {
        "a": ("F32", (2, 3), 0, 24, 6, 24), "b": ("BF16", (5,), 24, 34, 5, 10), "empty": ("F16", (0, 7), 34, 34, 0, 0),
        "scalar": ("I64", (), 34, 42, 1, 8),
    }  # fmt: skip
    assert {tensor.file for tensor in tensors.values()} == {path}


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@given(
    shapes=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5),
    names=st.lists(TEXT, min_size=5, max_size=5, unique=True),
    metadata=st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=3),
)
def test_what_the_library_writes_is_read_as_it_reads_it(
    path: Path, shapes: list[tuple[type, list[int]]], names: list[str], metadata: dict[str, str] | None
) -> None:
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in zip(names, shapes, strict=False)}
    arrays.pop("__metadata__", None)
    save_file(arrays, path, metadata)
    tensors = headers.read(path)
    content = path.read_bytes()
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].elements) == (array.shape, array.size)
        assert content[tensors[name].start : tensors[name].stop] == array.tobytes()


@pytest.mark.parametrize("dtype", headers.BITS)
def test_every_dtype_of_the_library_is_known(path: Path, dtype: str) -> None:
    """Eight values are whole bytes of every dtype; a byte less is refused by both."""
    size = headers.BITS[dtype]
    write(path, {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}, size)
    with safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["a"]
    assert headers.read(path)["a"].nbytes == size
    write(path, {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size - 1]}}, size - 1)
    with pytest.raises(SafetensorError):
        safe_open(path, framework="numpy")
    refused(path, f"'a'.data_offsets: got \\[0, {size - 1}\\]; allowed: .* {8 * size} bits ")


def test_no_other_dtype_is_known_to_the_library(path: Path) -> None:
    write(path, {"a": {"dtype": "F31", "shape": [8], "data_offsets": [0, 8]}}, 8)
    with pytest.raises(SafetensorError, match="expected one of") as caught:
        safe_open(path, framework="numpy")
    assert set(str(caught.value).split("`")[1::2]) - {"F31"} == set(headers.BITS)
    refused(path, "'a'.dtype: got 'F31'; allowed: F4, ")


# Not sound


def entry(**changed: Any) -> dict[str, Any]:
    return SOUND | {"a": SOUND["a"] | changed}


HOSTILE: list[tuple[object, str]] = [
    ([], "header: got a list; allowed: an object"),
    (None, "header: got a NoneType"),
    (b"", "header: got text that is no JSON"),
    (b"{", "header: got text that is no JSON"),
    (b"\xff", "header: got byte 0xff"),
    (b"[" * 200_000, "header: got values nested too deep"),
    (b'{"a":' * 200_000, "header: got values nested too deep"),
    (b'{"a": 1, "a": 1}', "header: got 'a' twice"),
    (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "header: got 'dtype' twice"),
    (b'{"a": NaN}', "header: got NaN"),
    (b'{"a": "\\ud800"}', "header: got half of a surrogate pair"),
    (SOUND | {"a": 3}, "header, 'a': got 3; allowed: dtype, shape and data_offsets, no more"),
    (SOUND | {"a": {"dtype": "F32", "shape": [2, 3]}}, "header, 'a': got .*; allowed: dtype, shape"),
    (entry(more=1), "header, 'a': got .*no more"),
    (SOUND | {"a\0b": SOUND["a"]}, r"header, 'a\\x00b': got 'a\\x00b'; allowed: a name without NUL"),
    (SOUND | {"": SOUND["a"]}, "header, '': got ''; allowed: a name"),
    (SOUND | {"__metadata__": {"a": 1}}, "header, __metadata__: got .*; allowed: an object of texts"),
    (SOUND | {"__metadata__": "pt"}, "header, __metadata__: got 'pt'"),
    (entry(dtype=32), "'a'.dtype: got 32"),
    (entry(dtype=["F32"]), "'a'.dtype: got "),
    (entry(dtype="f32"), "'a'.dtype: got 'f32'"),
    (entry(shape=None), "'a'.shape: got None; allowed: a list of 64 whole numbers at most"),
    (entry(shape=6), "'a'.shape: got 6"),
    (entry(shape=[2, -3]), r"'a'.shape: got \[2, -3\]"),
    (entry(shape=[2.0, 3]), r"'a'.shape: got \[2.0, 3\]"),
    (entry(shape=[True, 6]), r"'a'.shape: got \[True, 6\]"),
    (entry(shape=["2", 3]), "'a'.shape: got "),
    (entry(shape=[2**63]), "'a'.shape: got "),
    (entry(shape=[2**63 - 1] * 64), "'a'.data_offsets: got "),
    (entry(shape=[1] * 65), "'a'.shape: got "),
    (entry(shape=[10**400]), "'a'.shape: got "),
    (entry(shape=[1] * 100_000), "'a'.shape: got "),
    (entry(shape=[2, 4]), r"'a'.data_offsets: got \[0, 24\]; allowed: .* 256 bits that F32\[2, 4\] takes"),
    (entry(data_offsets=[0]), r"'a'.data_offsets: got \[0\]; allowed: two whole numbers"),
    (entry(data_offsets=[0, 24, 48]), "'a'.data_offsets: got "),
    (entry(data_offsets=[24, 0]), "'a'.data_offsets: got "),
    (entry(data_offsets=[-24, 0]), "'a'.data_offsets: got "),
    (entry(data_offsets=[0.0, 24.0]), "'a'.data_offsets: got "),
    (entry(data_offsets=[2**63, 2**63 + 24]), "'a'.data_offsets: got "),
    (entry(data_offsets=[1, 25]), "'a'.data_offsets: got an offset of 1, which leaves a gap after the header; allowed: 0, where"),
    (entry(data_offsets=[2**62, 2**62 + 24]), "'b'.data_offsets: got an offset of 24, which leaves a gap after the header"),
    (SOUND | {"b": SOUND["b"] | {"data_offsets": [14, 24]}}, "'b'.data_offsets: got an offset of 14, which overlaps 'a'; allowed: 24"),
    (SOUND | {"c": SOUND["b"]}, "'c'.data_offsets: got an offset of 24, which overlaps 'b'"),
    (SOUND | {"b": {"dtype": "F4", "shape": [3], "data_offsets": [24, 34]}}, "'b'.data_offsets: got .* 12 bits"),
    (SOUND | {"b": {"dtype": "F4", "shape": [3], "data_offsets": [24, 25]}}, "'b'.data_offsets: got .* 12 bits"),
]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("header", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_header_that_breaks_the_format(path: Path, header: object, message: str) -> None:
    refused(write(path, header), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 bytes; allowed: 8 at least"),
        (b"\0" * 7, "got 7 bytes; allowed: 8 at least"),
        (struct.pack("<Q", 0), "header: got text that is no JSON"),
        (struct.pack("<Q", 100) + b"{}", "got 10 bytes; allowed: 108 at least, by the length of its header"),
        (
            struct.pack("<Q", 10**8 + 1) + b"{}",
            "got a header of 100,000,001 bytes; allowed: .*, its header 100,000,000 at most",
        ),
        (b"\xff" * 8, "got a header of 18,446,744,073,709,551,615 bytes"),
        (b"PK\x03\x04" + bytes(100), "got 104 bytes; allowed: .* at least, by the length of its header|got text that is no JSON"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00helloq\x01K\x01s.", "got a header of .* bytes; allowed: a safetensors file"),
    ],
)
def test_a_file_that_is_none(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    refused(path, message)


@given(kept=st.integers(0, 10**6))
def test_a_truncated_file_says_got_and_expected(path: Path, kept: int) -> None:
    content = write(path, SOUND).read_bytes()
    kept %= len(content)
    path.write_bytes(content[:kept])
    begin = len(content) - SIZE
    allowed = f"{len(content)}, by its header" if kept >= begin else f"{begin if kept >= 8 else 8} at least, by the length of its header"
    assert str(refused(path, f"got {kept} bytes")) == f"{path}: got {kept} bytes; allowed: {allowed}; download the checkpoint again"


def test_bytes_after_the_end(path: Path) -> None:
    size = write(path, SOUND, SIZE + 3).stat().st_size
    refused(path, f"got {size} bytes; allowed: {size - 3}, by its header")


NUMBERS = st.integers() | st.sampled_from([0, 24, 34, 42, 2**63, 10**300]) | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.sampled_from(["dtype", "shape", "data_offsets", "a"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["F32", "F16", "BF16"]) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def read_or_place(path: Path) -> tuple[dict[str, headers.Stored], str]:
    """The tensors, or none and the place of the refusal."""
    try:
        return headers.read(path), str(path)
    except ContractError as error:
        return {}, error.place


@given(changes=st.dictionaries(st.sampled_from([*SOUND, "c", "__metadata__"]), JSON, max_size=3), parts=st.data())
def test_nearly_sound_is_a_header_or_a_refusal_with_its_place(path: Path, changes: dict[str, Any], parts: st.DataObject) -> None:
    header = SOUND | changes
    for name in parts.draw(st.sets(st.sampled_from(list(SOUND)), max_size=2), "tensors to spoil"):
        part = parts.draw(st.sampled_from(["dtype", "shape", "data_offsets"]), "part")
        header = header | {name: SOUND[name] | {part: parts.draw(JSON, "value")}}
    tensors, place = read_or_place(write(path, header))
    assert place.startswith(str(path))
    if tensors:
        with safe_open(path, framework="numpy") as file:  # what we take, the library takes too
            assert set(file.keys()) == tensors.keys()


@given(content=st.binary(max_size=120))
def test_any_bytes_are_refused_with_the_place(path: Path, content: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    tensors, place = read_or_place(path)
    assert (tensors, place.startswith(str(path))) == ({}, True)


@pytest.mark.timeout(60)
def test_many_keys_of_which_two_are_equal_are_refused_in_time(path: Path) -> None:
    tensors = ", ".join(f'"{key:06}": 0' for key in [*range(300_000), 299_999])
    refused(write(path, f"{{{tensors}}}".encode()), "header: got '299999' twice")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, "got a folder; allowed: a safetensors file")
    refused(tmp_path / "absent", "got no such file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "got no such file")
    refused(tmp_path / ("a" * 300), "got File name too long")
