"""A folder appears whole or not at all, and only abandoned leftovers are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.model.whole_folder import building, settle, sweep


def fail_half_way(target: Path) -> None:
    with building(target) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError("half way")


def test_building_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(tmp_path / "deep" / "model")
    assert list((tmp_path / "deep").iterdir()) == []


def test_sweep_spares_a_folder_in_use_and_other_models(tmp_path: Path) -> None:
    target = tmp_path / "model"
    others = [tmp_path / ".model-2.abc.partial", tmp_path / "model.backup"]
    abandoned = tmp_path / ".model.abc.partial"
    for folder in (*others, abandoned):
        folder.mkdir()
        (folder / "half").touch()
    with building(target) as folder:
        sweep(target)
        assert folder.exists()
        assert not abandoned.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_target_s_name_is_no_pattern(tmp_path: Path) -> None:
    spared, abandoned = tmp_path / ".mine.abc.partial", tmp_path / ".model[1].abc.partial"
    for folder in (spared, abandoned):
        folder.mkdir()
    sweep(tmp_path / "*")
    sweep(tmp_path / "model[1]")
    assert list(tmp_path.iterdir()) == [spared]


def test_settle_yields_to_the_folder_that_was_first(tmp_path: Path) -> None:
    built, target = tmp_path / "built", tmp_path / "model"
    for folder, text in ((built, "second"), (target, "first")):
        folder.mkdir()
        (folder / "weights").write_text(text)
    assert not settle(built, target)
    assert (target / "weights").read_text() == "first"
    assert settle(built, target, aside=tmp_path / "old")
    assert (target / "weights").read_text() == "second"
    assert (tmp_path / "old" / "weights").read_text() == "first"


def test_settle_aside_needs_no_folder_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    assert settle(tmp_path / "built", tmp_path / "model", aside=tmp_path / "old")
    assert not (tmp_path / "old").exists()
