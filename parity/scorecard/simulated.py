"""Cycles drawn from a known truth.

Legend: R draws, S training seeds, T tasks, M metrics.

Each (task, seed) of a lane has three latent uniform numbers: u (is it solved), v (how many attempts), w (does the first answer parse).
They are the task's own, the same for all lanes and seeds, except where they are drawn anew for this lane, with the probability that
makes `discordance` of the pairs of two equal lanes differ in semantics; `persistent` of those redraws hold for all the lane's seeds, so
that the lane answers otherwise whatever the seed. Solved: u < success - loss - (family's, seed's deviation). Solved tasks take 1 attempt
(9 of 10) or 2; others stall after 2 (7 of 10) or run out of 3. A first attempt that is accepted parses, as do 8 of 10 others. The numbers
of tokens are log-normal. All that is lost in semantics is thus lost elsewhere too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity.scorecard.statistics.sums import BoolArray, FloatArray

MAX_ATTEMPTS = 3
_AT_ONCE, _STALLS, _PARSES = 0.9, 0.7, 0.8
_TOKENS, _TASK_SPREAD, _ANSWER_SPREAD = 30.0, 0.3, 0.2


@dataclass(frozen=True, kw_only=True)
class World:
    """A truth.

    Attributes:
        loss: the candidate's true loss in semantics.
        success: the baseline's true share of solved tasks.
        discordance: share of pairs that two equal lanes answer differently.
        persistent: share of that which is the same in all seeds.
        seed_sd: standard deviation, over training seeds, of the difference in semantics between two lanes.
        family_sd: standard deviation, over families, of the candidate's loss.
        control_loss: what a broken harness takes from the control.
    """

    tasks: int = 800
    families: int = 20
    seeds: int = 3
    cycles: int = 2
    loss: float = 0.0
    success: float = 0.6
    discordance: float = 0.1
    persistent: float = 0.0
    seed_sd: float = 0.01
    family_sd: float = 0.0
    control_loss: float = 0.0

    @property
    def family_T(self) -> npt.NDArray[np.intp]:
        """Each task's family; sizes differ by 1 at most."""
        return np.arange(self.tasks, dtype=np.intp) % self.families

    @property
    def redrawn(self) -> float:
        """1 - (1 - redrawn)^2 of the pairs have a latent number of their own; 2 p (1 - p) of them differ."""
        most = 2.0 * self.success * (1.0 - self.success)
        if not 0.0 <= self.discordance <= most:
            raise ValueError(f"discordance is {self.discordance}, allowed with success {self.success}: 0 to {most:.3g}")
        return 1.0 - math.sqrt(1.0 - self.discordance / most)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Outcomes of one lane, each [R, S, T]; S counts the seeds of all cycles, one cycle after the other."""

    syntax: BoolArray
    semantics: BoolArray
    stalled: BoolArray
    attempts: FloatArray
    tokens: FloatArray


def draw(world: World, draws: int, generator: np.random.Generator) -> tuple[Drawn, Drawn, Drawn]:
    """(baseline, candidate, control), drawn many times."""
    shape = (draws, world.seeds * world.cycles, world.tasks)
    task = [generator.random((draws, 1, world.tasks), dtype=np.float32) for _ in range(3)]
    length = generator.standard_normal((draws, 1, world.tasks), dtype=np.float32) * np.float32(_TASK_SPREAD)
    family_loss = generator.standard_normal((draws, 1, world.families)) * world.family_sd + world.loss
    lanes = []
    for number in range(3):
        solved: FloatArray | float = world.success
        if number > 0:
            solved = world.success - generator.standard_normal((draws, shape[1], 1)) * world.seed_sd
        solved = solved - (0.0, family_loss[..., world.family_T], world.control_loss)[number]
        u, v, w = (_latent(shared, world, shape, generator) for shared in task)
        spread = generator.standard_normal(shape, dtype=np.float32) * np.float32(_ANSWER_SPREAD)
        lanes.append(_outcomes(u < solved, v, w, _TOKENS * np.exp(length + spread)))
    return lanes[0], lanes[1], lanes[2]


def _latent(
    shared: npt.NDArray[np.float32], world: World, shape: tuple[int, int, int], generator: np.random.Generator
) -> npt.NDArray[np.float32]:  # fmt: skip
    draws, _, tasks = shape
    anew = generator.random(shape, dtype=np.float32) < np.float32(world.redrawn * (1.0 - world.persistent))
    values = np.where(anew, generator.random(shape, dtype=np.float32), shared)
    if world.persistent == 0.0:
        return values
    # a lane's own number, whatever the seed: of the redrawn, the persistent share
    share = world.redrawn * world.persistent / (1.0 - world.redrawn * (1.0 - world.persistent))
    own = generator.random((draws, 1, tasks), dtype=np.float32) < np.float32(share)
    return np.where(~anew & own, generator.random((draws, 1, tasks), dtype=np.float32), values)


def _outcomes(solved: BoolArray, v: npt.NDArray[np.float32], w: npt.NDArray[np.float32], length: FloatArray) -> Drawn:
    at_once = solved & (v < _AT_ONCE)
    stalled = ~solved & (v < _STALLS)
    made = np.where(at_once, 1.0, np.where(solved | stalled, 2.0, float(MAX_ATTEMPTS)))
    attempts = np.where(solved, made, float(MAX_ATTEMPTS))
    return Drawn(at_once | (w < _PARSES), solved, stalled, attempts, made * length)
