"""What tinygrad raises where a compiler, its cache of kernels or a device's memory gives out, as one line that a user can act on.

A compiler and the cache fail inside `Compiler.compile_cached`, which TellingCompiler stands in for. Memory fails in an allocator
(stacks/tinygrad_lora/memory.py), or, rarely, when a kernel is loaded or launched, which `told` is for.
"""

from __future__ import annotations

import functools
import sqlite3
import subprocess
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tinygrad.device import CompileError
from tinygrad.device import Compiler as DeviceCompiler
from tinygrad.helpers import CACHEDB, CACHELEVEL, CCACHE, db_connection

from contract.errors import EnvironmentUnfit
from contract.training.trainer import OutOfMemory
from stacks.tinygrad_lora.compiler import first_line

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_OUT_OF_MEMORY = ("out of memory", "OutOfMemory", "Insufficient Memory", "MEM_OBJECT_ALLOCATION_FAILURE", "OUT_OF_RESOURCES")
"""In a RuntimeError of CUDA ("CUDA Error 2, out of memory"), Dawn, Metal's command buffers and OpenCL."""

_MODULE_LOADED = "module load failed with status code 2:"
"""CUDA_ERROR_OUT_OF_MEMORY while a kernel is loaded."""

_SHADER = "Shader compilation failed: "


class TellingCompiler:
    """A device's compiler as tinygrad calls it, whose failures say what to do.

    Args:
        own: the one that compiles.
        name: as a message calls it.
        remedy: what to do where it fails.
    """

    def __init__(self, own: DeviceCompiler, *, name: str, remedy: str) -> None:
        self.own, self._name, self._remedy = own, name, remedy

    def compile_cached(self, src: str) -> bytes:
        """A kernel's machine code, from tinygrad's cache where it's there. Raises: EnvironmentUnfit."""
        try:
            return bytes(self.own.compile_cached(src))
        except subprocess.CalledProcessError as error:
            # what it said went to the log: once more, to hear it
            done = subprocess.run(error.cmd, input=src.encode(), capture_output=True, check=False)
            if done.returncode == 0:
                return done.stdout
            raise self._failed(f"exit code {done.returncode}: {first_line(done.stderr)}") from None
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None
        except CompileError as error:
            raise self._failed(first_line(str(error).encode())) from None
        except sqlite3.Error as error:
            raise unusable_cache(error) from None

    def disassemble(self, lib: bytes) -> None:
        """For tinygrad's own DEBUG=7."""
        self.own.disassemble(lib)

    def _failed(self, said: str) -> EnvironmentUnfit:
        return EnvironmentUnfit(f"{self._name} failed on a kernel ({said}); {self._remedy}")


def telling(own: DeviceCompiler | TellingCompiler, *, name: str, remedy: str) -> TellingCompiler:
    """A device's compiler as one that tells; of one that tells already, the compiler inside."""
    return TellingCompiler(getattr(own, "own", own), name=name, remedy=remedy)


def require_cache() -> None:
    """Sees to it that tinygrad's cache of compiled kernels, an SQLite file, can be written.

    Raises:
        EnvironmentUnfit: it can't.
    """
    if CACHELEVEL.value < 1 or not CCACHE.value:
        return
    try:
        connection = db_connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE twostack (written)")  # a file that is only to be read lets a transaction begin
        connection.rollback()
    except (sqlite3.Error, OSError) as error:
        raise unusable_cache(error) from None


def unusable_cache(error: sqlite3.Error | OSError) -> EnvironmentUnfit:
    """Of a cache that can't be opened, read or written."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # a file that is none of SQLite's is a DatabaseError; what the system refuses is its subclass OperationalError
    broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    remedy = "remove it: it is made anew" if broken else "make it writable, free some space there, or name another file with CACHEDB"
    return EnvironmentUnfit(f"tinygrad's cache of kernels {CACHEDB} can't be used ({said}); {remedy}; CACHELEVEL=0 goes without")


def told(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """What a device says while kernels run, in the words of the contract.

    Raises:
        OutOfMemory: its memory is full.
        EnvironmentUnfit: its driver does not take a kernel.
    """

    @functools.wraps(method)
    def telling(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            said = first_line(str(error).encode())
            if said.startswith(_MODULE_LOADED) or any(words in said for words in _OUT_OF_MEMORY):
                raise OutOfMemory(said) from error
            if said.startswith(_SHADER):
                raise EnvironmentUnfit(f"the device's driver failed on a kernel ({said}); update it, or use the device CPU") from error
            raise

    return telling
