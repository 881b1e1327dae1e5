"""What a manifest says of the program's own source."""

from __future__ import annotations

import subprocess
from pathlib import Path

from contract.training.launch import changed_since, git_sha


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert git_sha(tmp_path) is None
    assert not changed_since(tmp_path)
    git(tmp_path, "init", "-q")
    assert git_sha(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    assert git_sha(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    assert not changed_since(tmp_path)
    (tmp_path / "a").write_text("2")
    assert changed_since(tmp_path)


def test_a_folder_inside_another_s_checkout_is_none_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "installed").mkdir()
    assert git_sha(tmp_path / "installed") is None
