"""The arithmetic of a merge, to the bit: what every program that follows it computes, on every machine.

    delta_ij = s * (B_i0 A_0j + B_i1 A_1j + ...)        the ranks in ascending order, from +0
    W'_ij    = float32(float64(W_ij) + delta_ij)

A and B are float32, so that each product is exact in float64; each sum, the product with s and the last sum are rounded to float64
once, and the result to float32 once. No BLAS, whose order of summation is its own, and no fused multiply-add: each operation is a
NumPy ufunc over a tile, which stores its result before the next one reads it.

Legend: I rows and J columns as the checkpoint stores them, R rank; for a transposed weight the factors change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contract.artifacts.adapter import Adapter
from contract.errors import ContractError

TILE = 2**15
"""Elements of a tile: its three float64 arrays stay in a core's second-level cache."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one linear adds to the block of a stored weight that begins at (row, column)."""

    adapter: Adapter
    logical: str
    row: int
    column: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block."""
        a_RI, b_OR = self.adapter.matrices[self.logical]
        out, in_ = b_OR.shape[0], a_RI.shape[1]
        return (in_, out) if self.adapter.places[self.logical].transposed else (out, in_)

    def factors(self) -> Factors:
        """Its matrices, ready to be multiplied."""
        a_RI, b_OR = (matrix.astype(np.float64) for matrix in self.adapter.matrices[self.logical])
        # Multiplication commutes, so that the transposed weight gets the same bits at the mirrored place.
        left, right = (a_RI.T, b_OR.T) if self.adapter.places[self.logical].transposed else (b_OR, a_RI)
        scale = self.adapter.scale(self.logical)
        return Factors(left_IR=left, right_RJ=np.ascontiguousarray(right), scale=scale, row=self.row, column=self.column)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A block's two factors, in float64; it begins at (row, column) of the stored weight."""

    left_IR: np.ndarray
    right_RJ: np.ndarray
    scale: float
    row: int
    column: int

    def add_to(self, tile: np.ndarray, first: int) -> None:
        """Adds the block's rows to a float64 tile of whole rows of the weight, the first of which is row `first`."""
        rows, columns = len(self.left_IR), self.right_RJ.shape[1]
        start, stop = max(first, self.row), min(first + len(tile), self.row + rows)
        if start >= stop:
            return
        left_IR = self.left_IR[start - self.row : stop - self.row]
        total = np.zeros((stop - start, columns))
        product = np.empty_like(total)
        for rank, right_J in enumerate(self.right_RJ):
            np.multiply(left_IR[:, rank, None], right_J, out=product)
            np.add(total, product, out=total)
        np.multiply(total, self.scale, out=total)
        block = tile[start - first : stop - first, self.column : self.column + columns]
        np.add(block, total, out=block)


def rows_at_once(columns: int) -> int:
    """Rows of a tile."""
    return max(1, TILE // columns)


def merged_tiles(tiles: Iterator[np.ndarray], deltas: Sequence[Delta], *, place: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Successive tiles of a weight's rows, each float32, as they were and with the deltas added.

    Raises:
        ContractError: a value that is not finite; `place` names the weight.
    """
    factors, row = [delta.factors() for delta in deltas], 0
    for tile in tiles:
        wide = tile.astype(np.float64)
        for one in factors:
            one.add_to(wide, row)
        with np.errstate(over="ignore"):  # looked for right here
            narrow = wide.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise ContractError(
                place, got="a value that is NaN or infinite once it is merged", allowed="finite values", remedy="look into both for them"
            )
        yield tile, narrow
        row += len(tile)
