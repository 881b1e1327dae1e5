"""How much a run draws."""

from __future__ import annotations

from dataclasses import dataclass

from parity.checks.check import Check


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How many examples are drawn.

    examples:    of a check that is cheap
    alike:       of every check, whatever it costs; else a costly one draws fewer
    short:       of a check's fixed cases, no more than the few that it names
    full:        of which architectures whole graphs are asked as that says; of the others one example a check. None: of all
    random_seed: the seed is another in each run, unless given
    """

    examples: int
    alike: bool = False
    short: bool = False
    full: frozenset[str] | None = None
    random_seed: bool = False

    def asks(self, check: Check) -> bool:
        """Whether it asks a check at all."""
        return self.alike or not check.nightly

    def drawn(self, check: Check) -> int:
        """How many examples of a check are drawn."""
        if check.cases is None or not self.asks(check):
            return 0
        if self._one(check):
            return 0 if check.fixed_count else 1
        count = self.examples if self.alike else max(check.least, self.examples // check.cost)
        return count if check.most is None else min(count, check.most)

    def fixed(self, check: Check) -> int:
        """How many of a check's fixed cases are asked, the first ones."""
        if not self.asks(check):
            return 0
        if self._one(check):
            return min(1, check.fixed_count)
        return check.few if self.short and check.few is not None else check.fixed_count

    def _one(self, check: Check) -> bool:
        """Whether a check's graphs are of other architectures than the profile has in full; a session that is open costs little a step."""
        if self.full is None or check.whole or any(plan.graph is not None and plan.graph.session for plan in check.plans):
            return False
        return bool(check.model_types) and check.model_types.isdisjoint(self.full)


IN_FULL = frozenset({"llama", "gpt2"})
"""The two that differ most: norms, positions, biases, the layout of weights and the MLP."""

PROFILES: dict[str, Profile] = {
    "quick": Profile(examples=12, short=True, full=IN_FULL),
    "ci": Profile(examples=60, full=IN_FULL),
    "nightly": Profile(examples=10_000, alike=True, random_seed=True),
}
FIXED_SEED = 20230523
"""Any number serves; this is the day on which the QLoRA paper appeared."""
