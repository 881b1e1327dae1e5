"""Known, accepted failures: each with a reason, somebody who answers for it, and an end.

A waiver that matches a failing cell turns it into `waived`. One that is expired or matches nothing fails
the run, so that the list can only shrink.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import UserError

FILE = Path("waivers.toml")


class Waiver(BaseModel):
    """Accepts one check's failure on one stack until a day; what is an error or not covered stays so.

    owner: who is to say what becomes of it.

    In waivers.toml::

        [[waiver]]
        check = "a.exp"
        stack = "my_stack"
        reason = "its exp is off by 40 ulp until issue 17"
        owner = "ada@example.org"
        expires = 2027-01-31
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    stack: str
    reason: str = Field(min_length=1)
    owner: str = Field(pattern=r"\S")
    expires: datetime.date

    def covers(self, check: str, stacks: tuple[str, ...]) -> bool:
        """Whether a failure of `check` between `stacks` is the one that this waiver accepts."""
        return self.check == check and self.stack in stacks


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    waiver: list[Waiver] = []


def read(path: Path) -> tuple[Waiver, ...]:
    """The waivers of a file; none where there is no file.

    Raises:
        UserError: the file is not sound.
    """
    if not path.exists():
        return ()
    try:
        return tuple(_File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).waiver)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see docs/gate.md, Again, and waivers, for the form"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as TOML ({error}); see docs/gate.md, Again, and waivers, for the form") from None
