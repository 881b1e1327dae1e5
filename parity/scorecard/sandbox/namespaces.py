"""A launcher: runs a command in user, mount, process, network, IPC and host name namespaces of its own (Linux 5.12 or later).

A script for `python -I -S`: it imports nothing of ours, and is given one argument, a plan in JSON (`Plan`). Three processes:

    launcher    unshares; its parent, who may, writes which users the new namespace has; waits for
    init        process 1 in there: makes the file system, gives up every privilege, reaps; when it ends, the kernel kills all that it held
    command     what was asked for, as user 1000, without capabilities

Standard input, output and error are the command's. Over the control socket the launcher says, in JSON, a line each: `unshared`,
`child-pid` (of init, as its parent sees it), `exit-code` (the command's, negative for a signal), `failed` (words); it reads one byte once
the users are written. bubblewrap's --json-status-fd says the two in the middle in the same words.

Source: user_namespaces(7), mount_namespaces(7), pid_namespaces(7), pivot_root(2), open_tree(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import struct
import sys
from typing import NoReturn, TypedDict

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
EVERYTHING = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
"""System calls, by their numbers: the same on every architecture, and not in every C library."""
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 0x8000, 1, 4
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 0x4000, 0x40000, 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITIES_V3 = 0x20080522
USER = 1000
"""Inside. Nobody else is there."""


class Plan(TypedDict):
    """What a launcher is asked for."""

    command: list[str]
    control: int
    binds: list[str]
    links: dict[str, str]
    folder_bytes: int


def main(plan: Plan) -> int:
    """Runs the command and waits for its end."""
    control = plan["control"]
    os.set_inheritable(control, False)
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _call("unshare", EVERYTHING)
        _say(control, unshared=True)
        if os.read(control, 1) != b"m":
            return 1
        init = os.fork()
        if not init:
            _init(plan)
        _leave_pipes()
        _say(control, child_pid=init)
        os.waitpid(init, 0)
    except OSError as error:
        _say(control, failed=f"{error.filename}: {error.strerror}")
        return 1
    return 0


def _init(plan: Plan) -> NoReturn:
    """Process 1. What it can do to others is gone before the command starts, and the command can't touch it."""
    control = plan["control"]
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal without a handler never reaches process 1 from inside
        _forbid_namespaces()
        _file_system(plan)
        _give_up()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user takes it back
        _prctl(PR_SET_DUMPABLE, 0)
        command = os.fork()
        if not command:
            os.setsid()
            os.execve(plan["command"][0], plan["command"], {})
        _leave_pipes()
        while True:
            child, status = os.wait()
            if child == command:
                _say(control, exit_code=os.waitstatus_to_exitcode(status))
                os._exit(0)
    except OSError as error:
        _say(control, failed=f"{error.filename}: {error.strerror}")
    os._exit(1)


def _forbid_namespaces() -> None:
    """No namespace inside this one: less of the kernel to attack. Where /proc/sys is read-only the others hold all the same."""
    try:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
    except OSError:
        pass


def _file_system(plan: Plan) -> None:
    """/: what the command needs to start, read-only. /tmp: empty, its own. Neither /proc, /dev, /etc nor anybody's home."""
    # Opened first: the caller may pass through folders that user 1000 may not.
    trees = {path: _open_tree(path) for path in plan["binds"]}
    if _may_set_groups():
        os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _mount("/", None, MS_REC | MS_PRIVATE, "")
    _mount("/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for path, tree in trees.items():
        inside = "/tmp" + path
        _make_place(inside, folder=stat.S_ISDIR(os.fstat(tree).st_mode))
        _syscall(MOVE_MOUNT, tree, b"", AT_FDCWD, inside.encode(), MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
    for path, target in plan["links"].items():
        os.makedirs(os.path.dirname("/tmp" + path), exist_ok=True)
        os.symlink(target, "/tmp" + path)
    os.makedirs("/tmp/tmp", exist_ok=True)
    _mount("/tmp/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={plan['folder_bytes']},nr_inodes=1024,mode=700")
    _read_only(b"/tmp", AT_FDCWD, 0)
    os.chdir("/tmp")
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def _open_tree(path: str) -> int:
    tree = _syscall(OPEN_TREE, AT_FDCWD, path.encode(), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)
    _read_only(b"", tree, AT_EMPTY_PATH | AT_RECURSIVE)
    return tree


def _read_only(path: bytes, folder: int, flags: int) -> None:
    attributes = struct.pack("=4Q", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    _syscall(MOUNT_SETATTR, folder, path, flags, attributes, len(attributes))


def _make_place(inside: str, *, folder: bool) -> None:
    if folder:
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o600))


def _may_set_groups() -> bool:
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "allow"


def _give_up() -> None:
    """Every capability, and the ways to get one back."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the first that this kernel doesn't know
    _call("capset", struct.pack("=Ii", CAPABILITIES_V3, 0), bytes(24))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _leave_pipes() -> None:
    for number in range(3):
        os.close(number)


def _say(control: int, **what: object) -> None:
    os.write(control, json.dumps({key.replace("_", "-"): value for key, value in what.items()}).encode() + b"\n")


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def _syscall(number: int, *arguments: int | bytes) -> int:
    typed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *typed))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"system call {number}")
    return result


def _mount(target: str, kind: str | None, flags: int, options: str) -> None:
    kind_bytes = kind.encode() if kind else None
    if _libc.mount(kind_bytes, target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode() or None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"mount {target}")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
