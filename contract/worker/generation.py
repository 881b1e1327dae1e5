"""The request `generate`: what a stack is asked to write on, and what it answers.

Progress frames have `loaded` and `of` (weights) while the graph is made, `compiled` and `of` (layers) while a stack makes kernels, then
`new`: for each sequence the ids that it has gained since the last frame. The answer has `sequences`, one a prompt in their order,
`load_seconds`, `compile_seconds` (0 in a stack that compiles nothing), `seconds` (of the generation alone) and `notes`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.run.spec import Base

Dtype = Literal["float32", "float64", "bfloat16"]

_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Sampling(_Frozen):
    """How a token is chosen from logits: contract/data/sampling.py has the rule; temperature 0 is greedy."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=42, ge=0, le=2**63 - 1)


class Opens(_Frozen):
    """What a request opens by its files (contract/artifacts/opening.py).

    model: a checkpoint's folder, or a known name. adapter: a folder of an adapter or a training checkpoint; None: the model alone.
    base: how the frozen base is held; None: as the adapter's file says that it was in training, else plain.
    """

    model: str
    adapter: str | None = None
    base: Base | None = None
    dtype: Dtype = "float32"


class Generation(Opens):
    """What is to be generated.

    prompts: token ids, one tuple a sequence, none empty. stop: ids that end a sequence; the one that did is the last of its `ids`.
    first_sequence: the number of the first prompt, of which the random numbers depend.
    """

    prompts: Annotated[tuple[Annotated[tuple[_Id, ...], Field(strict=False, min_length=1)], ...], Field(strict=False, min_length=1)]
    max_new_tokens: int = Field(ge=1)
    stop: Annotated[tuple[_Id, ...], Field(strict=False)] = ()
    sampling: Sampling = Sampling()
    first_sequence: int = Field(default=0, ge=0, le=2**63 - 1)


class Generated(_Frozen):
    """One sequence: its new ids, and why it ended (stop: an id of `stop`; length: max_new_tokens; cancelled)."""

    ids: Annotated[tuple[_Id, ...], Field(strict=False)]
    finish: Literal["stop", "length", "cancelled"]


class Answer(_Frozen):
    """What a stack answers. notes: what the user must know of how the model was put together."""

    sequences: Annotated[tuple[Generated, ...], Field(strict=False)]
    load_seconds: float
    compile_seconds: float = 0.0
    seconds: float
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
