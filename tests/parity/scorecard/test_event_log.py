"""The log: what was appended is there whatever happens after, a torn line is dropped, one writer at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError, UserError
from parity.scorecard import event_log
from parity.scorecard.event import Asked, Completion, Infra, Scores
from parity.scorecard.event_log import EventLog, line_of, read_events

SCORES = Scores(
    compile_pass_1=True, compile_pass_n=True, repair_depth=0, canonical_pass=True, strictness=True, task_success=True,
    semantic_task_success=True, error_count=0, errors=(), time_to_first_valid_ms=1.0, repair_stalled=False, placeholder_hits=0,
    trivial_output=True, richness=0.5, anti_stub_pass=False,
)  # fmt: skip


def completion(number: int, answer: str = "yes") -> Completion:
    asked = Asked(condition="c", task=f"t{number}", seed=1, attempt=1)
    return Completion(
        event_id=asked.event_id(spec="s", cycle="1"), condition="c", backend="b", family="f", task=asked.task, seed=1, attempt=1,
        answer=answer, finish="stop", tokens_in=1, tokens_out=2, latency_ms=3.5, batch=1, scores=SCORES,
    )  # fmt: skip


def infra(number: int) -> Infra:
    done = completion(number)
    return Infra(
        event_id=done.event_id, condition="c", backend="b", family="f", task=done.task, seed=1, attempt=1, error="timeout",
        message="no answer", latency_ms=1.0,
    )  # fmt: skip


def logged(path: Path, *events: Completion | Infra) -> list[Completion | Infra]:
    log = EventLog(path)
    log.append(events)
    log.close()
    return log.events


@given(answer=st.text())
def test_an_event_survives_its_line(answer: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    event = completion(0, answer.encode("utf-8", "replace").decode())
    logged(path, event)
    assert read_events(path) == [event]


def test_every_torn_last_line_is_dropped_and_all_before_it_stays(tmp_path: Path) -> None:
    path, events = tmp_path / "events.jsonl", [completion(0), infra(1), completion(1)]
    whole = b"".join(map(line_of, events))
    begin = len(whole) - len(line_of(events[2]))
    for size in (begin, begin + 1, (begin + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert read_events(path) == events[:2]
        assert logged(path, events[2]) == events
        assert path.read_bytes() == whole


def test_the_first_completion_wins(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first, second = completion(0, "first"), completion(0, "second")
    assert logged(path, infra(0), first, second) == [infra(0), first]
    assert read_events(path) == [infra(0), first]
    path.write_bytes(line_of(first) + line_of(second) + line_of(completion(1)))
    assert read_events(path) == [first, completion(1)]


def test_a_completion_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    logged(path, completion(0, "first"))
    before = path.read_bytes()
    logged(path, completion(0, "second"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [b"{}", b"", b"null", b"[1]", b"\xff", line_of(completion(0)).rstrip().replace(b'"seed":1', b'"seed":"1"'),
     line_of(completion(0)).rstrip()[:-1] + b',"more":1}'],
)  # fmt: skip
def test_a_whole_line_that_is_no_event_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line_of(completion(0)) + line + b"\n" + line_of(completion(1)))
    with pytest.raises(ContractError, match=r"events\.jsonl:2"):
        read_events(path)
    with pytest.raises(ContractError, match=r"events\.jsonl:2"):
        EventLog(path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(UserError, match="another process"):
        EventLog(tmp_path / "events.jsonl")
    log.close()
    EventLog(tmp_path / "events.jsonl").close()


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_leaves_the_log_as_it_was_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append([completion(0)])
    real = os.write

    def half(descriptor: int, content: Any) -> int:
        if fails == "fsync":
            return real(descriptor, content)
        if len(content) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content[: max(9, len(content) // 2)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(event_log.os, "write", half)
        if fails == "fsync":
            patched.setattr(event_log.os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            log.append([completion(1)])
    assert caught.value.filename == str(path)
    assert read_events(path) == [completion(0)]
    log.append([completion(1)])
    assert read_events(path) == [completion(0), completion(1)]
    log.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        EventLog(tmp_path / "events.jsonl")


def test_an_event_id_tells_every_part_apart() -> None:
    parts = {"condition": "c", "task": "t", "seed": 1, "attempt": 1}
    changed = [parts | {"condition": "d"}, parts | {"task": "u"}, parts | {"seed": 2}, parts | {"attempt": 2}]
    ids = {Asked(**one).event_id(spec="s", cycle="1") for one in (parts, *changed)}
    ids |= {Asked(**parts).event_id(spec=spec, cycle=cycle) for spec, cycle in (("s", "2"), ("t", "1"))}
    assert len(ids) == 7
