"""Which cage this machine can make."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from typing import Literal

from contract.errors import EnvironmentUnfit
from parity.scorecard.sandbox.cage import Cage
from parity.scorecard.sandbox.launching import Method
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.sandbox.peer import Ended

Isolation = Literal["required", "none"]
"""`none`: limits, a process group and a deadline alone, for a program that may then read, write and send what its user may."""


def method(isolation: Isolation) -> Method:
    """How cages are made here. Tried once a process, with a program that does nothing.

    Raises:
        EnvironmentUnfit: no isolation can be had, and it was not said that none is needed.
    """
    if isolation == "none":
        return "none"
    return _isolated()


@cache
def _isolated() -> Method:
    if sys.platform != "linux":
        raise _refusal(f"{sys.platform} has no namespaces")
    reasons = []
    methods: tuple[Method, ...] = ("namespaces", "bubblewrap")
    for one in methods:
        if one == "bubblewrap" and not shutil.which("bwrap"):
            reasons.append("bubblewrap: bwrap is not installed")
            continue
        if one == "bubblewrap" and os.geteuid() == 0:
            reasons.append("bubblewrap: it does not bound how many processes a superuser starts")
            continue
        try:
            _try(one)
            return one
        except (EnvironmentUnfit, Ended) as error:
            reasons.append(f"{one}: {error}")
    raise _refusal("; ".join(reasons))


def _try(one: Method) -> None:
    with Cage("answer", method=one, limits=Limits()) as cage:
        cage.begin("def nothing(): pass", "nothing")
        cage.receive()


def _refusal(reason: str) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"answers in Python run in a sandbox only, and none can be had here ({reason}); allowed: Linux 5.12 or later that lets this user "
        "make user namespaces, or bubblewrap; or, for answers that you trust with all that you may do, say isolation: none"
    )
