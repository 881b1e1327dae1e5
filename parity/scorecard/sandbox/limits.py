"""What a program in a cage may use."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one cage. Memory and CPU time are each process's; a whole cage has at most `processes` times as much.

    Attributes:
        seconds: until a cage is killed whole, since it was started.
        cpu_seconds: of each process (RLIMIT_CPU).
        memory: bytes of each process's address space (RLIMIT_AS).
        processes: processes and threads together (RLIMIT_NPROC), with two of the cage's own.
        file_bytes: of each file (RLIMIT_FSIZE).
        folder_bytes: of all files together, in a cage that has a file system of its own.
        open_files: of each process (RLIMIT_NOFILE).
        message_bytes: of one message over the pipe.
        printed_bytes: to standard output and standard error together.
    """

    seconds: float = 20.0
    cpu_seconds: int = 10
    memory: int = 512 * MIB
    processes: int = 10
    file_bytes: int = 4 * MIB
    folder_bytes: int = 8 * MIB
    open_files: int = 32
    message_bytes: int = MIB
    printed_bytes: int = MIB

    def of_a_process(self) -> dict[str, int]:
        """Resource -> limit, but for the number of processes."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }
