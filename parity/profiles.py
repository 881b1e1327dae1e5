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
    random_seed: the seed is another in each run, unless given
    """

    examples: int
    alike: bool = False
    short: bool = False
    random_seed: bool = False

    def drawn(self, check: Check) -> int:
        """How many examples of a check are drawn."""
        if check.cases is None:
            return 0
        count = self.examples if self.alike else max(check.least, self.examples // check.cost)
        return count if check.most is None else min(count, check.most)

    def fixed(self, check: Check) -> int:
        """How many of a check's fixed cases are asked, the first ones."""
        return check.few if self.short and check.few is not None else check.fixed_count


PROFILES: dict[str, Profile] = {
    "quick": Profile(examples=12, short=True),
    "ci": Profile(examples=60),
    "nightly": Profile(examples=10_000, alike=True, random_seed=True),
}
FIXED_SEED = 20230523
"""Any number serves; this is the day on which the QLoRA paper appeared."""
