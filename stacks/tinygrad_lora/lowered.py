"""What tinygrad makes of a kernel, kept on disk beside the machine code that tinygrad itself keeps.

tinygrad's cache holds machine code by source. The source is made anew in every process, by rewriting the kernel's graph: 40 ms a kernel on
a CPU, more than half of what the first call of a small graph costs. Here it's kept by the graph's own digest: what comes back is the same
source, so the same code and the same bits. An entry is text (JSON).
"""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tinygrad
from tinygrad import codegen, dtypes
from tinygrad.dtype import AddrSpace
from tinygrad.helpers import CACHELEVEL, CCACHE, DEBUG, VIZ, db_connection
from tinygrad.renderer import Estimates, Renderer
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

from stacks.tinygrad_lora.failures import unusable_cache

TABLE = "twostack_lowered"
FORMAT = 1
"""Goes up when an entry's fields change."""

Lower = Callable[[UOp, Renderer], UOp]


def keep() -> None:
    """Has tinygrad look here before it lowers a kernel for a CPU, where it keeps compiled ones too; more than once does no harm."""
    own: Lower = getattr(codegen.do_to_program, "own", codegen.do_to_program)
    codegen.do_to_program = Kept(own) if CACHELEVEL.value >= 1 and CCACHE.value else own


class Kept:
    """tinygrad's lowering of a kernel, from disk where it was done before.

    Args:
        own: what does it.
    """

    def __init__(self, own: Lower) -> None:
        self.own = own
        self._ready: sqlite3.Connection | None = None

    def __call__(self, ast: UOp, renderer: Renderer) -> UOp:
        """The kernel's program, compiled.

        Raises:
            EnvironmentUnfit: tinygrad's cache can't be used.
        """
        if not _can_be_kept(ast, renderer):
            return self.own(ast, renderer)
        key = _key(ast, renderer)
        with self._cache() as cache:
            found = cache.execute(f"SELECT program FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        if found is not None:
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged: lowered anew
                return _program(json.loads(found[0]), renderer)
        program = self.own(ast, renderer)
        fields = _fields(program)
        if fields is not None:
            with self._cache() as cache:
                cache.execute(f"REPLACE INTO {TABLE} VALUES (?, ?)", (key, json.dumps(fields)))
        return program

    @contextmanager
    def _cache(self) -> Iterator[sqlite3.Connection]:
        """tinygrad's own file; what is written is whole when the block ends."""
        try:
            with db_connection() as cache:
                if cache is not self._ready:
                    cache.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, program TEXT)")
                    self._ready = cache
                yield cache
        except sqlite3.Error as error:
            raise unusable_cache(error) from None


def _can_be_kept(ast: UOp, renderer: Renderer) -> bool:
    """A kernel of a CPU as the scheduler makes it; who looks into tinygrad (DEBUG, VIZ) is shown how it's lowered."""
    plain = ast.op is Ops.SINK and isinstance(ast.arg, KernelInfo) and ast.tag is None and not ast.arg.beam
    return plain and renderer.target.device == "CPU" and DEBUG.value < 3 and not VIZ.value


def _key(ast: UOp, renderer: Renderer) -> str:
    """All that lowering depends on: graph, device, settings, and tinygrad's own source."""
    _, kind, target, *settings = codegen.to_program_key(ast, renderer)
    parts = (FORMAT, ast.key.hex(), kind.__qualname__, repr(target), *map(repr, settings), _source_digest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _source_digest() -> str:
    """SHA-256 of tinygrad's source: one that was changed in place lowers otherwise under the same version."""
    root, digest = Path(tinygrad.__file__).parent, hashlib.sha256()
    for part in ("*.py", "codegen/**/*.py", "renderer/*.py", "schedule/*.py", "uop/*.py", "runtime/ops_cpu.py"):
        for file in sorted(root.glob(part)):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _fields(program: UOp) -> dict[str, Any] | None:
    """A lowered kernel's fields; None of one whose sizes are known only when it is launched."""
    sink, linear, source, _ = program.src
    info, estimates = program.arg, sink.arg.estimates
    numbers = (*info.global_size, *(info.local_size or ()), estimates.ops, estimates.lds, estimates.mem)
    params = [one for one in linear.src if one.op is Ops.PARAM]
    if not all(isinstance(number, int) for number in numbers) or any(one.arg.axis is not None for one in params):
        return None
    return {
        "name": info.name, "global_size": info.global_size, "local_size": info.local_size, "globals": info.globals, "outs": info.outs,
        "ins": info.ins, "estimates": [estimates.ops, estimates.lds, estimates.mem], "params": [_fields_of_param(one) for one in params],
        "source": source.arg,
    }  # fmt: skip


def _fields_of_param(param: UOp) -> dict[str, Any]:
    arg = param.arg
    return {
        "slot": arg.slot, "dtype": _name(arg.dtype), "shape": param.shape, "vmin_vmax": arg.vmin_vmax, "multiple_of": arg.multiple_of,
        "name": arg.name, "addrspace": arg.addrspace.name, "device": arg.device, "volatile": arg.volatile,
    }  # fmt: skip


def _program(fields: dict[str, Any], renderer: Renderer) -> UOp:
    """The lowered kernel, compiled, without its graph, which nothing that launches it looks at."""
    params = tuple(_param(one) for one in fields["params"])
    info = ProgramInfo(
        name=fields["name"], global_size=tuple(fields["global_size"]),
        local_size=None if fields["local_size"] is None else tuple(fields["local_size"]),
        vars=tuple(sorted((one for one in params if one.arg.addrspace is AddrSpace.ALU), key=lambda one: one.arg.slot)),
        globals=tuple(fields["globals"]), outs=tuple(fields["outs"]), ins=tuple(fields["ins"]), target=renderer.target,
    )  # fmt: skip
    sink = UOp(Ops.SINK, arg=KernelInfo(name=fields["name"], estimates=Estimates(*fields["estimates"])))
    source = UOp(Ops.SOURCE, arg=fields["source"])
    binary = UOp(Ops.BINARY, arg=renderer.compiler.compile_cached(fields["source"]))
    return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.LINEAR, src=params), source, binary), arg=info)


def _param(fields: dict[str, Any]) -> UOp:
    given = {name: fields[name] for name in ("device", "multiple_of", "name", "volatile")}
    bounds = fields["vmin_vmax"]
    return UOp.param(
        fields["slot"], getattr(dtypes, fields["dtype"]), tuple(fields["shape"]), vmin_vmax=None if bounds is None else tuple(bounds),
        addrspace=AddrSpace[fields["addrspace"]], **given,
    )  # fmt: skip


def _name(dtype: Any) -> str:
    """By which `dtypes` has it."""
    return repr(dtype).removeprefix("dtypes.")
