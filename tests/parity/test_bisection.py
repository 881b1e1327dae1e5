"""What `parity bisect` takes: refused before any worker is started."""

from __future__ import annotations

import pytest

from contract.errors import UserError
from parity import bisection
from parity.session import Options, Progress


@pytest.mark.parametrize("check", ["a.matmul", "b.quantize", "d.trajectory", "d.trajectory_float32"])
def test_a_check_of_no_graph_is_refused(check: str) -> None:
    with pytest.raises(UserError, match=f"check {check} is of no whole graph; bisect takes those of tier C"):
        bisection.run(Options(checks=(check,)), "precision", Progress())
