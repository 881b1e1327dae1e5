"""What a killed process leaves of a file that it was writing is removed by the next one; what a living one writes is spared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contract.data import sealed
from contract.worker.files import replacing, sweep

CODE = """
import sys, time
from pathlib import Path
from contract.worker.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_s_file_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    target, other = tmp_path / "rows[1].index", tmp_path / "rows1.index"
    command = [sys.executable, "-c", CODE, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        [partial] = tmp_path.iterdir()
        sweep(target)
        assert partial.read_bytes() == b"half"
        os.kill(writer.pid, signal.SIGKILL)
    assert partial.exists()
    sweep(other)
    assert partial.exists()
    with sealed.writing(target) as rows:
        assert not partial.exists()
        rows.finish({})
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_swept_while_it_is_written_is_spared(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write(b"whole")
        sweep(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_where_the_temporary_file_goes_is_not_followed(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a"
    victim.write_bytes(b"mine")
    target.with_name(f".a.{os.getpid()}.partial").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), replacing(target):
        pass
    assert victim.read_bytes() == b"mine"
    assert not target.exists()


def test_a_folder_or_a_file_without_a_lock_in_its_way_is_no_error(tmp_path: Path) -> None:
    (tmp_path / ".a.1.partial").mkdir()
    (tmp_path / ".a.2.partial").touch()
    sweep(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".a.1.partial"]
