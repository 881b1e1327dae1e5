"""The index of a train file: which rows are kept, how they are reached, and when an index is not used again."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data import index, rows
from contract.data.index import RowIndex, open_index
from contract.errors import ContractError, EnvironmentUnfit
from contract.run.spec import DataSpec
from contract.worker import files

GOOD = b'{"prompt": "p", "response": "r"}'


def pair(at: int, **more: object) -> dict[str, object]:
    return {"prompt": f"p{at}", "response": "r"} | more


@dataclass
class Reads:
    """Opens the index of one file, and counts the passes that were made over it."""

    folder: Path
    passes: int = 0

    @property
    def path(self) -> Path:
        return self.folder / "train.jsonl"

    def write(self, *lines: object) -> None:
        self.path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))

    def open(self, **spec: Any) -> RowIndex:
        def progress(done: int, total: int) -> None:
            self.passes += done == total

        return open_index(self.path, DataSpec(train_file="train.jsonl", **spec), cache=self.folder / "cache", progress=progress)

    def refusal(self, **spec: Any) -> ContractError:
        with pytest.raises(ContractError) as caught:
            self.open(**spec)
        assert not list(self.folder.glob("cache/*"))
        return caught.value


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    return Reads(tmp_path)


def kept(found: RowIndex) -> list[int]:
    """The lines of the rows that are kept; each row is what its line says."""
    for at in range(len(found)):
        assert found.row(at) == rows.parse(found.path.read_bytes().split(b"\n")[found.line(at) - 1], found.line(at), "x")
    return [found.line(at) for at in range(len(found))]


def test_rows_are_left_out_by_rating_and_category_and_counted(reads: Reads) -> None:
    reads.write(
        pair(1, rating=2, category="Rust"), pair(2, rating=3, category="rust/async"), pair(3, category="python"), pair(4),
        pair(5, rating=5, category="all of RUST", difficulty=2.5), pair(6, rating=1),
    )  # fmt: skip
    found = reads.open(context_filter="ruST")
    assert kept(found) == [2, 5]
    assert (found.total, found.kept, found.before_filter, found.left_out) == (6, 2, 4, {"bad": 0, "rating": 2, "category": 2})
    np.testing.assert_array_equal(found.difficulty, [np.nan, 2.5])
    assert kept(reads.open()) == [2, 3, 4, 5]
    assert kept(reads.open(min_rating=1)) == [1, 2, 3, 4, 5, 6]
    assert kept(reads.open(min_rating=5, context_filter="rust")) == [5]


def test_category_is_compared_without_case_in_any_script(reads: Reads) -> None:
    reads.write(pair(1, category="STRASSE"), pair(2, category="straße"), pair(3, category="gasse"))
    assert kept(reads.open(context_filter="Straße")) == [1, 2]


@given(
    lines=st.lists(
        st.tuples(
            st.none() | st.integers(1, 5),
            st.none() | st.sampled_from(["a", "AB", "c"]),
            st.sampled_from([b"\n", b"\r\n"]),
            st.text(max_size=3),
        ),
        max_size=12,
    ),
    min_rating=st.integers(1, 5),
    part=st.none() | st.sampled_from(["a", "B", "d"]),
    last_ends=st.booleans(),
)
def test_an_index_keeps_what_a_plain_reading_keeps(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int | None, str | None, bytes, str]], min_rating: int, part: str | None,
    last_ends: bool,
) -> None:  # fmt: skip
    reads = Reads(tmp_path_factory.mktemp("rows"))
    wanted, content = [], b""
    for number, (rating, category, end, text) in enumerate(lines, 1):
        text = text.replace("\0", "")
        content += json.dumps({"prompt": text, "response": "r", "rating": rating, "category": category}).encode() + end
        if (rating or 5) >= min_rating and (part is None or part.lower() in (category or "").lower()):
            wanted.append((number, text))
    reads.path.write_bytes(content if last_ends else content.rstrip())
    if not wanted:
        assert "row" in reads.refusal(min_rating=min_rating, context_filter=part).got
        return
    found = reads.open(min_rating=min_rating, context_filter=part)
    assert [(found.line(at), found.row(at).messages[0].content) for at in range(len(found))] == wanted
    assert found.total == len(lines)
    assert found.kept + sum(found.left_out.values()) == found.total


def test_the_first_bad_line_is_named(reads: Reads) -> None:
    reads.write(GOOD, GOOD, b"", GOOD, b"{")
    fault = reads.refusal()
    assert (fault.place, fault.got) == (f"{reads.path}:3", "an empty line")


def test_bad_rows_are_counted_and_the_first_ones_listed(reads: Reads) -> None:
    reads.write(GOOD, *[pair(1, rating=9)] * 250, pair(2, lane=1), pair(3, lane=2, prompt=""))
    found = reads.open(skip_bad_rows=True)
    assert kept(found) == [1, 252, 253]
    assert found.left_out["bad"] == 250
    assert [number for number, _ in found.bad] == list(range(2, 2 + index.MOST_LISTED))
    assert found.bad[0][1] == "got 9 (int); allowed: a whole number, 1 to 5"
    assert found.noted == {"empty user text": 1, "unknown field 'lane'": 2}
    again = reads.open(skip_bad_rows=True)
    assert (again.bad, again.noted, again.left_out) == (found.bad, found.noted, found.left_out)


def test_a_thousand_unknown_names_take_no_more_memory_than_a_hundred(reads: Reads) -> None:
    reads.write(*[pair(at, **{f"x{at:04}": 1}) for at in range(1000)])
    noted = reads.open().noted
    assert (len(noted), noted["others"], sum(noted.values())) == (index.MOST_LISTED + 1, 1000 - index.MOST_LISTED, 1000)


def test_a_line_over_the_limit_is_refused_and_what_follows_is_found(reads: Reads) -> None:
    reads.write(GOOD, b'{"prompt": "' + b"p" * (3 * rows.MAX_LINE_BYTES) + b'", "response": "r"}', GOOD)
    found = reads.open(skip_bad_rows=True)
    assert kept(found) == [1, 3]
    assert "a line of more than" in found.bad[0][1]
    reads.path.write_bytes(GOOD + b"\n" + b"p" * (3 * rows.MAX_LINE_BYTES))
    assert kept(reads.open(skip_bad_rows=True)) == [1]


@pytest.mark.parametrize(
    ("lines", "spec", "got"),
    [
        ([], {}, "no row"),
        ([pair(1, rating=1)] * 3, {}, "3 rows, all of them left out (3 rated too low)"),
        ([pair(1, category="x")], {"context_filter": "y"}, "1 rows, all of them left out (1 of another category)"),
        ([b"{", pair(1, rating=1)], {"skip_bad_rows": True}, "2 rows, all of them left out (1 malformed, 1 rated too low)"),
    ],
)
def test_a_file_that_leaves_no_row_is_refused(reads: Reads, lines: list[object], spec: dict[str, Any], got: str) -> None:
    reads.write(*lines)
    assert reads.refusal(**spec).got == got


def test_what_is_no_file_is_refused(reads: Reads) -> None:
    assert reads.refusal().got == "No such file or directory"
    reads.path.mkdir()
    assert reads.refusal().got == "a folder"
    reads.path.rmdir()
    os.mkfifo(reads.path)
    assert reads.refusal().got == "something that is no file"
    reads.path.unlink()
    reads.path.symlink_to(reads.path)
    assert "symbolic links" in reads.refusal().got
    with pytest.raises(ContractError, match="null byte"):
        open_index(Path("a\0b"), DataSpec(train_file="x"))


def test_an_index_is_used_again_only_with_the_same_file_and_filters(reads: Reads) -> None:
    reads.write(pair(1, rating=3), pair(2, rating=5))
    assert (kept(reads.open()), reads.passes) == ([1, 2], 1)
    assert (kept(reads.open()), reads.passes) == ([1, 2], 1)
    assert (kept(reads.open(min_rating=4)), reads.passes) == ([2], 2)
    assert (kept(reads.open(skip_bad_rows=True)), reads.passes) == ([1, 2], 3)
    assert (kept(reads.open(validation_split=0.5, curriculum="difficulty")), reads.passes) == ([1, 2], 3)
    reads.write(pair(1, rating=5), pair(2, rating=3), pair(3))
    assert (kept(reads.open()), reads.passes) == ([1, 2, 3], 4)


def test_another_file_of_the_same_size_and_time_of_modification_is_told_apart(reads: Reads) -> None:
    reads.write(pair(1))
    first, status = reads.open(), reads.path.stat()
    other = reads.folder / "other"
    other.write_bytes(json.dumps(pair(2)).encode() + b"\n")
    os.replace(other, reads.path)
    os.utime(reads.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert reads.open().row(0).messages[0].content == "p2"
    with pytest.raises(ContractError, match="was changed after it was checked"):
        first.row(0)


def damaged(content: bytes) -> Iterator[bytes]:
    """Cut short, or with one bit changed, at many places."""
    for at in (0, 1, 3, 17, 40, len(content) // 2, len(content) - 30, len(content) - 1):
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    yield content + b"x"
    yield content[1:]


def test_a_damaged_index_is_made_anew(reads: Reads) -> None:
    reads.write(pair(1), pair(2, difficulty=4), pair(3))
    whole = reads.open().file.read_bytes()
    for passes, content in enumerate(damaged(whole), 2):
        reads.open().file.write_bytes(content)
        assert kept(reads.open()) == [1, 2, 3]
        assert reads.passes == passes
        assert reads.open().file.read_bytes() == whole


def test_an_index_of_another_version_is_made_anew(reads: Reads) -> None:
    reads.write(pair(1), pair(2))
    whole = reads.open().file.read_bytes()
    other = whole[:-20].replace(b'"kept": 2', b'"kept": 9') + b"ROWS\0\0\0\2" + whole[-12:-4]
    reads.open().file.write_bytes(other + zlib.crc32(other).to_bytes(4, "little"))
    assert (kept(reads.open()), reads.passes) == ([1, 2], 2)


@pytest.mark.parametrize("change", [b"", GOOD[:-3], GOOD.replace(b"p", b"q"), GOOD + b"\n" + GOOD], ids=["empty", "short", "same", "long"])
def test_a_file_that_changes_later_is_refused_on_access(reads: Reads, monkeypatch: pytest.MonkeyPatch, change: bytes) -> None:
    """Even where the file system's clock has not ticked between the two writings, which leaves only the row's own bytes."""
    reads.write(GOOD)
    found = reads.open()
    reads.path.write_bytes(change)
    monkeypatch.setattr(index.files, "identity", lambda file: found.source)
    if change.startswith(GOOD):
        monkeypatch.undo()
    with pytest.raises(ContractError, match="was changed after it was checked"):
        found.row(0)


def test_a_file_that_goes_away_is_refused_on_access(reads: Reads) -> None:
    reads.write(GOOD)
    found = reads.open()
    with pytest.raises(IndexError):
        found.row(1)
    reads.path.unlink()
    with pytest.raises(ContractError, match="No such file"):
        found.row(0)


def test_a_file_that_grows_while_it_is_read_is_refused(reads: Reads) -> None:
    reads.write(*[GOOD] * 5000)

    def progress(done: int, total: int) -> None:
        with open(reads.path, "ab") as file:
            file.write(GOOD + b"\n")

    with pytest.raises(ContractError, match="was changed after it was checked"):
        open_index(reads.path, DataSpec(train_file="x"), cache=reads.folder / "cache", progress=progress)
    assert not list(reads.folder.glob("cache/*"))


def test_progress_rises_to_the_files_size(reads: Reads) -> None:
    reads.write(*[GOOD] * 10_000)
    told: list[tuple[int, int]] = []
    open_index(reads.path, DataSpec(train_file="x"), cache=reads.folder, progress=lambda *pair: told.append(pair))
    size = reads.path.stat().st_size
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert len(told) == 3


def test_an_unwritable_cache_is_the_environments_fault(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    reads.write(GOOD)
    (reads.folder / "cache").write_bytes(b"in the way")
    with pytest.raises(EnvironmentUnfit, match="can't be written"):
        reads.open()

    @contextmanager
    def full(path: Path) -> Iterator[BinaryIO]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    monkeypatch.setattr(files, "replacing", full)
    with pytest.raises(EnvironmentUnfit, match="No space left"):
        open_index(reads.path, DataSpec(train_file="x"), cache=reads.folder)


def test_the_users_cache_is_the_default(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    reads.write(GOOD)
    monkeypatch.setattr(files, "cache_folder", lambda: reads.folder / "user")
    assert open_index(reads.path, DataSpec(train_file="x")).file.parent == reads.folder / "user" / "rows"
