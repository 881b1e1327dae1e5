"""How a cage is made on this machine: the command that starts a program in one, and what it may see of the file system."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil

from parity.scorecard.sandbox.limits import Limits

Method = Literal["namespaces", "bubblewrap", "none"]
HERE = Path(__file__).parent
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
"""Where a Python interpreter's shared libraries lie."""
NOBODY = 65534
"""Who a caged program is, outside, where a superuser starts it: RLIMIT_NPROC does not bind user 0."""


def interpreter() -> str:
    """Python itself, without a virtual environment."""
    return os.path.realpath(sys.executable)


def inner_command(role: str) -> list[str]:
    """Runs inside.py where no file of ours can be seen."""
    return [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", (HERE / "inside.py").read_text(), role]


def launch_command(method: Method, command: Sequence[str], control: int, limits: Limits) -> list[str]:
    """The launcher's, with a descriptor that it says on what it does, in JSON lines."""
    if method == "bubblewrap":
        return _bubblewrap(command, control, limits)
    plan: dict[str, object] = {"command": list(command), "control": control}
    if method == "namespaces":
        binds, links = visible()
        plan |= {"binds": binds, "links": links, "folder_bytes": limits.folder_bytes}
    script = "namespaces.py" if method == "namespaces" else "unconfined.py"
    return [interpreter(), "-I", "-S", "-B", str(HERE / script), json.dumps(plan)]


def visible() -> tuple[list[str], dict[str, str]]:
    """What a cage shows of the file system, read-only: Python, its library, the system's libraries. Paths, and links -> their targets."""
    wanted = [interpreter(), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        wanted.append(os.path.join(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")))
    binds: list[str] = []
    links: dict[str, str] = {}
    for path in (*SYSTEM, *wanted):
        if os.path.islink(path) and path in SYSTEM:
            links[path] = os.readlink(path)
        elif os.path.exists(path) and not any(Path(path).is_relative_to(there) for there in (*binds, *links)):
            binds.append(path)
    return binds, links


def process_limit(method: Method, limits: Limits) -> int:
    """RLIMIT_NPROC. It counts a user's processes in a user namespace, so a cage's own; without one, all of the user's."""
    if method != "none":
        return limits.processes
    mine = os.getuid()
    threads = [one.info for one in psutil.process_iter(["uids", "num_threads"])]
    return limits.processes + sum(info["num_threads"] or 1 for info in threads if info["uids"] and info["uids"].real == mine)


def write_users(process: int) -> None:
    """Says who user 1000 of a process's new user namespace is outside.

    Raises:
        OSError: not allowed.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _known("uid_map") and _known("gid_map"):
        user = group = NOBODY
    else:
        Path(f"/proc/{process}/setgroups").write_text("deny")
    Path(f"/proc/{process}/uid_map").write_text(f"1000 {user} 1")
    Path(f"/proc/{process}/gid_map").write_text(f"1000 {group} 1")


def _known(table: str) -> bool:
    ranges = [tuple(map(int, line.split())) for line in Path(f"/proc/self/{table}").read_text().splitlines()]
    return any(first <= NOBODY < first + length for first, _, length in ranges)


def _bubblewrap(command: Sequence[str], control: int, limits: Limits) -> list[str]:
    binds, links = visible()
    return [
        shutil.which("bwrap") or "bwrap", "--json-status-fd", str(control), "--unshare-all", "--unshare-user", "--disable-userns",
        "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv", "--uid", "1000", "--gid", "1000",
        *(word for path in binds for word in ("--ro-bind", path, path)),
        *(word for path, target in links.items() for word in ("--symlink", target, path)),
        "--size", str(limits.folder_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/",
        "--", *command,
    ]  # fmt: skip
