"""Where a command puts what it makes: a folder that appears whole, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.artifacts.kinds import Kind, what_is
from contract.errors import ContractError
from contract.model import whole_folder


@contextmanager
def output_folder(target: Path, *, force: bool, replaces: tuple[Kind, ...], sources: tuple[Path, ...]) -> Iterator[Path]:
    """A folder to write into, that takes `target`'s place once all is written; whatever ends it before leaves nothing.

    Args:
        force: a folder of one of the kinds in `replaces` may be replaced; nothing else ever is.
        sources: what is read meanwhile: none of them is the target, or lies below it.

    Raises:
        ContractError: something is there already that may not be replaced, or the target is a source.
    """
    try:
        target = target.expanduser().resolve()
        require_free(target, force=force, replaces=replaces, sources=sources)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(repr(str(target)), got=str(error), allowed="a path", remedy="give another one") from None
    with _told_where(target), whole_folder.building(target) as temporary:
        built = temporary / "built"
        built.mkdir()
        yield built
        for path in (*built.rglob("*"), built):
            _to_disk(path)
        old = temporary / "old"
        try:
            settled = whole_folder.settle(built, target, aside=old if force else None)
        finally:
            if old.exists() and not target.exists():  # interrupted between the two renames
                os.rename(old, target)
        if not settled:
            raise ContractError(str(target), got="a folder that came into being meanwhile", allowed="none", remedy="give another one")
        _to_disk(target.parent)


@contextmanager
def _told_where(target: Path) -> Iterator[None]:
    """A full disk tells of no file: it's the target's."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(target)
        raise


def require_free(target: Path, *, force: bool, replaces: tuple[Kind, ...], sources: tuple[Path, ...]) -> None:
    """Refuses a target that may not be written, before any work is done."""
    for source in sources:
        real = source.resolve()
        if real == target or target in real.parents:
            raise ContractError(
                str(target), got=f"the folder of an input ({source}), or one above it", allowed="a folder of its own",
                remedy="give another one",
            )  # fmt: skip
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    kinds = " or ".join(replaces)
    try:
        kind = what_is(target)[0] if target.is_dir() else None
    except ContractError:
        kind = None
    if not force:
        remedy = "give one" + (", or --force to replace this" if kind in replaces else "")
        raise ContractError(str(target), got=kind or "something that is there", allowed="a folder that is new or empty", remedy=remedy)
    if kind not in replaces:
        raise ContractError(str(target), got=kind or "something else", allowed=f"with --force {kinds}", remedy="give another folder")


def _to_disk(path: Path) -> None:
    """A file, or the names in a folder, which are on disk only once the folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
