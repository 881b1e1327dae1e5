"""Frames: everything that may travel arrives bit for bit, everything else is refused, on either side, at once."""

from __future__ import annotations

import io
import json
import re
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.worker import wire

DTYPES = {
    **{name: np.dtype(name) for name in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")},
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
BITS_16 = {"bfloat16": 7, "float16": 10}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Any bits of any dtype, as a view that need not be contiguous; no size or rank left out."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)), label="dtype")]
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), label="shape")
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size), label="bits"), np.uint8)
    tensor = (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)
    return tensor.T if draw(st.booleans(), label="transposed") else tensor


def encoded(header: dict[str, Any], payload: dict[str, np.ndarray] | None = None) -> bytes:
    pipe = io.BytesIO()
    wire.send(pipe, header, payload)
    return pipe.getvalue()


def there_and_back(payload: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return wire.receive(io.BytesIO(encoded({}, payload)))[1]


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


@given(payload=st.dictionaries(NAMES, tensors(), max_size=3))
@example(payload={"": np.zeros((), np.float32), "payload_bytes": np.zeros((0, 3), np.int8), '"\n\0é😀': np.ones(1, bool)})
def test_tensors_arrive_bit_for_bit(payload: dict[str, np.ndarray]) -> None:
    got = there_and_back(payload)
    assert set(got) == set(payload)
    for name, tensor in payload.items():
        assert_same_bits(got[name], tensor)


@pytest.mark.parametrize("name", sorted(BITS_16))
def test_every_16_bit_float_arrives(name: str) -> None:
    """All 65,536 patterns: NaN payloads, subnormals, -0.0."""
    every = np.arange(2**16, dtype=np.uint16).view(DTYPES[name])
    assert_same_bits(there_and_back({"x": every})["x"], every)


@pytest.mark.parametrize(
    ("unsigned", "dtype", "patterns"),
    [
        (np.uint32, "float32", [0x80000000, 0x7F800001, 0xFFC12345, 0x00000001, 0x807FFFFF, 0xFF800000]),
        (np.uint64, "float64", [2**63, 0x7FF0000000000001, 0xFFF8000000012345, 1, 2**63 + 1, 0xFFF0000000000000]),
    ],
)
def test_peculiar_floats_arrive(unsigned: type, dtype: str, patterns: list[int]) -> None:
    peculiar = np.array(patterns, unsigned).view(dtype)
    assert_same_bits(there_and_back({"x": peculiar})["x"], peculiar)


@given(header=st.dictionaries(st.text().filter(lambda key: key != "payload_bytes"), JSON, max_size=4))
def test_headers_arrive(header: dict[str, Any]) -> None:
    assert wire.receive(io.BytesIO(encoded(header))) == (header, {})


def test_the_format_is_the_documented_one() -> None:
    got = encoded({"id": 3}, {"x": np.array([1.5], np.float32)})
    (length,) = struct.unpack("<I", got[:4])
    header = json.loads(got[4 : 4 + length])
    payload = got[4 + length :]
    assert header == {"id": 3, "payload_bytes": len(payload)}
    (inner,) = struct.unpack("<Q", payload[:8])
    assert json.loads(payload[8 : 8 + inner])["x"] == {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    assert payload[8 + inner :] == struct.pack("<f", 1.5)


def test_frames_follow_each_other() -> None:
    pipe = io.BytesIO(encoded({"id": 1}, {"x": np.arange(3)}) + encoded({"id": 2}))
    assert wire.receive(pipe)[0] == {"id": 1}
    assert wire.receive(pipe)[0] == {"id": 2}
    with pytest.raises(wire.EndOfPipe):
        wire.receive(pipe)


def test_a_big_endian_tensor_arrives_with_its_values() -> None:
    got = there_and_back({"x": np.array([1.5, -2.0], ">f4")})["x"]
    assert_same_bits(got, np.array([1.5, -2.0], "<f4"))


def test_arrived_tensors_are_ones_own() -> None:
    got = there_and_back({"x": np.zeros(3), "y": np.zeros(3)})
    got["x"][:] = 1
    np.testing.assert_array_equal(got["y"], 0)


@pytest.mark.parametrize(
    "tensor",
    [
        *(np.zeros(1, dtype) for dtype in (complex, "M8[s]", "f4,f4", np.longdouble, ml_dtypes.float8_e4m3fn)),
        *(np.array(["a"]), np.array([None])),
    ],
    ids=lambda tensor: tensor.dtype.name,
)
def test_other_dtypes_are_refused(tensor: np.ndarray) -> None:
    pipe = io.BytesIO()
    with pytest.raises(wire.WireError, match=rf"x is {re.escape(tensor.dtype.name)}, which can't travel; allowed: bool, uint8"):
        wire.send(pipe, {}, {"x": tensor})
    assert pipe.getvalue() == b""


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_safetensors_cant_hold_are_refused(name: str) -> None:
    with pytest.raises(wire.WireError, match="is no name for a tensor"):
        encoded({}, {name: np.zeros(1)})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32(1), b"bytes", {1, 2}, object()], ids=["nan", "inf", "numpy", "bytes", "set", "object"]
)
def test_headers_that_json_cant_hold_are_refused(value: object) -> None:
    pipe = io.BytesIO()
    with pytest.raises(wire.WireError, match="a header that can't travel"):
        wire.send(pipe, {"value": value})
    assert pipe.getvalue() == b""


def test_a_header_over_the_limit_is_refused_where_it_is_sent() -> None:
    with pytest.raises(wire.WireError, match="send less at a time"):
        encoded({"value": "x" * wire.MAX_HEADER_BYTES})


FRAME = encoded({"id": 7, "status": "ok"}, {"x": np.arange(3, dtype=np.float32), "y": np.ones(2, ml_dtypes.bfloat16)})


def test_a_pipe_that_ends_between_frames_ended() -> None:
    with pytest.raises(wire.EndOfPipe):
        wire.receive(io.BytesIO())


@pytest.mark.parametrize("length", range(1, len(FRAME)))
def test_a_frame_that_ends_early_is_cut_short(length: int) -> None:
    with pytest.raises(wire.CutShort):
        wire.receive(io.BytesIO(FRAME[:length]))


@given(garbage=st.binary(min_size=1, max_size=64))
@example(garbage=b"loading weights\n")
def test_garbage_is_never_a_frame(garbage: bytes) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.receive(io.BytesIO(garbage))
    assert not isinstance(caught.value, wire.EndOfPipe)


@given(position=st.integers(0, len(FRAME) - 1), byte=st.integers(0, 255))
def test_a_garbled_frame_is_refused_or_is_a_frame(position: int, byte: int) -> None:
    """Nothing but a WireError ever leaves `receive`; a change inside a value can't be seen."""
    garbled = FRAME[:position] + bytes([byte]) + FRAME[position + 1 :]
    try:
        header, payload = wire.receive(io.BytesIO(garbled))
    except wire.WireError:
        return
    assert isinstance(header, dict)
    assert all(isinstance(tensor, np.ndarray) for tensor in payload.values())


@given(payload=st.binary(max_size=64))
def test_a_payload_that_is_no_safetensors_is_refused(payload: bytes) -> None:
    text = json.dumps({"payload_bytes": len(payload)}).encode()
    pipe = io.BytesIO(struct.pack("<I", len(text)) + text + payload)
    if not payload:
        assert wire.receive(pipe) == ({}, {})
        return
    with pytest.raises(wire.WireError, match="no safetensors"):
        wire.receive(pipe)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        ('{"payload_bytes": 0}'.encode("utf-16"), "no JSON"),
        (b'{"payload_bytes": 0, "loss": NaN}', "NaN is no JSON number"),
        (b"[]", "is a list, must be an object"),
        (b"null", "is a NoneType, must be an object"),
        (b"{}", "payload_bytes .got None"),
        (b'{"payload_bytes": -1}', "payload_bytes .got -1"),
        (b'{"payload_bytes": true}', "payload_bytes .got True"),
        (b'{"payload_bytes": 1.0}', "payload_bytes .got 1.0"),
        (b'{"payload_bytes": 17179869185}', "payload_bytes .got 17179869185"),
    ],
)
def test_an_unsound_header_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(wire.WireError, match=why):
        wire.receive(io.BytesIO(struct.pack("<I", len(text)) + text))


def test_a_dtype_that_numpy_lacks_is_refused() -> None:
    inner = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    with pytest.raises(wire.WireError, match="x is F8_E5M2, which can't travel"):
        wire.unpack(struct.pack("<Q", len(inner)) + inner + b"\0")


class CountingPipe(io.BytesIO):
    """Counts what is asked of it at a time."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.largest = max(self.largest, size or 0)
        return super().read(size)


def test_an_announced_payload_is_not_reserved_before_it_comes() -> None:
    text = json.dumps({"payload_bytes": wire.MAX_PAYLOAD_BYTES}).encode()
    pipe = CountingPipe(struct.pack("<I", len(text)) + text + b"x")
    with pytest.raises(wire.CutShort):
        wire.receive(pipe)
    assert pipe.largest <= wire.MAX_PAYLOAD_BYTES // 100


class TricklingPipe(io.BytesIO):
    """Gives a byte at a time, as a raw pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1))


def test_a_frame_may_come_in_pieces() -> None:
    header, payload = wire.receive(TricklingPipe(FRAME))
    assert header == {"id": 7, "status": "ok"}
    np.testing.assert_array_equal(payload["x"], np.arange(3))
