"""What a bisection finds: one operation of one stack that is wrong on right inputs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from parity.report.number import Number


class Fault(BaseModel):
    """One operation (a tap's name) of one stack, wrong in the named sections on the reference's inputs.

    observed and bound are those of the row with the least head-room, at `where` in the first of the sections.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    stack: str
    operation: str
    direction: Literal["forward", "backward", "both"]
    sections: tuple[str, ...]
    tensor: str = Field(description="what was compared: the tap, or grad.NAME")
    where: tuple[int, ...]
    got: Number
    wanted: Number
    observed: Number = Field(description="L2 norm of the row's difference")
    bound: Number
    relative: Number = Field(description="observed / L2 norm of the reference's row")
