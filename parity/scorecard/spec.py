"""A scorecard's spec: which conditions are asked which tasks, how often, and at what cost (docs/scorecard.schema.json)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from contract.artifacts.record import Line, Name, Record, Sha256
from contract.data.prompt import Template
from contract.run.spec import Base, TokenizerMode
from contract.worker.generation import Dtype
from parity.scorecard.task import Task

SEED = "{seed}"
"""In a local condition's adapter it stands for the seed: one adapter a training seed."""

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Condition(Record):
    """What all kinds of conditions have."""

    id: Name = Field(description="of this condition, once in a spec")
    backend: Name = Field(description="which lane's training this is, as comparisons name it")


class Local(Condition):
    """A stack answers in its worker: a base, or an adapter on it."""

    kind: Literal["local"]
    stack: Name = Field(description="the stack that generates; the same for both candidates where their training is compared")
    device: Name | None = Field(default=None, description="CPU, CUDA, ...; none: the stack's first")
    model: Line = Field(description="a known name, a folder, or a hub id")
    adapter: Line | None = Field(default=None, description="its folder; {seed} in it is replaced by the seed; none: the base alone")
    base: Base | None = Field(default=None, description="how the base is held; none: as the adapter's file says")
    dtype: Dtype = Field(default="float32", description="of activations and products")
    template: Template = Field(default="chatml", description="tokenizer: the model's own; none: the text as it is")
    tokenizer: TokenizerMode = Field(default="hf", description="vox: the fixed table")
    temperature: float = Field(default=0.0, ge=0, description="0: always the likeliest token; over 0 takes batch 1")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens that hold this share")
    batch: int = Field(default=64, ge=1, le=4096, description="prompts a request; the model is loaded once for each")


class HttpGenerate(Condition):
    """A server that speaks OpenAI's chat completions."""

    kind: Literal["http_generate"]
    server_url: Annotated[str, Field(pattern=r"^https?://[^\s?#@]{1,512}$")] = Field(
        description="up to /chat/completions: http://127.0.0.1:8000/v1"
    )
    model: Line = Field(description="as the server names it")
    temperature: float = Field(default=0.0, ge=0, le=2, description="sent as it is")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sent as it is")
    concurrency: int = Field(default=1, ge=1, le=256, description="requests at a time")


class FixtureFile(Condition):
    """Answers that were written down: answers.jsonl in a folder."""

    kind: Literal["fixture_file"]
    fixture_dir: Line = Field(description="a folder; a relative one is relative to the spec's")


AnyCondition = Annotated[Local | HttpGenerate | FixtureFile, Field(discriminator="kind")]


class Budgets(Record):
    """What a run may cost. A run that meets a limit of a whole ends, complete as far as it got, and can go on."""

    max_new_tokens: int = Field(default=128, ge=1, le=2**20, description="of an answer")
    request_seconds: float = Field(default=120.0, gt=0, le=86_400, description="one request, from its first byte to its last")
    infra_retries: int = Field(default=2, ge=0, le=100, description="times that a request which broke down is sent again")
    infra_errors: int = Field(default=50, ge=0, le=10**6, description="attempts lost to infra errors, after which a run ends")
    total_seconds: float | None = Field(default=None, gt=0, description="of a run's generation, over all times that it was resumed")
    total_tokens: int | None = Field(default=None, ge=1, description="in and out, of a whole run")


class Comparison(Record):
    """What `parity promote` is to decide: conditions by their ids."""

    baseline: Name = Field(description="the production backend's")
    candidate: Name = Field(description="of the backend that may be promoted")
    control: Name | None = Field(default=None, description="the production backend trained and scored again (A/A)")
    suite: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = Field(
        default="suite", description="as the promotion's binding names it, beside the tasks' digest"
    )

    def lanes(self) -> dict[str, str]:
        """Condition by lane."""
        found = {"baseline": self.baseline, "candidate": self.candidate, "control": self.control}
        return {lane: condition for lane, condition in found.items() if condition is not None}


class Suite(Record):
    """Tasks that are made by a script of this package, held against their digest."""

    name: Name = Field(description="text_to_sql")
    tasks: int = Field(ge=1, le=100_000, description="how many")
    sha256: Sha256 | None = Field(default=None, description="of the tasks; parity scorecard verify tells it")


def _distinct(values: Sequence[Any], what: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"each {what} once; {repeated[0]!r} is there twice")


def _distinct_ids(found: tuple[Any, ...]) -> tuple[Any, ...]:
    _distinct([one.id for one in found], "id")
    return found


def _distinct_seeds(found: tuple[int, ...]) -> tuple[int, ...]:
    _distinct(found, "seed")
    return found


class Spec(Record):
    """A scorecard's spec, whole."""

    schema_version: Literal[1] = Field(description="of this file's format")
    prompt_pack_version: Line = Field(description="of the prompts; part of every event's id")
    max_retries: int = Field(default=2, ge=0, le=100, description="how often a failed answer's author is told its errors and asked again")
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=1024), AfterValidator(_distinct_seeds)] = Field(
        default=(0,), description="of training, and of what is drawn with a temperature; each asks every task once"
    )
    system: Annotated[str, Field(min_length=1, max_length=2**16)] | None = Field(
        default=None, description="the system turn of every prompt"
    )
    isolation: Literal["required", "none"] = Field(
        default="required", description="none: candidates' Python runs even where no sandbox can be had"
    )
    budgets: Budgets = Budgets()
    conditions: Annotated[tuple[AnyCondition, ...], Field(strict=False, min_length=1, max_length=256), AfterValidator(_distinct_ids)] = (
        Field(description="what is compared")
    )
    comparison: Comparison | None = Field(default=None, description="what is to be decided; none: nothing is")
    suite: Suite | None = Field(default=None, description="tasks by a suite's name; or tasks")
    tasks: Annotated[tuple[Task, ...], Field(strict=False, max_length=10_000), AfterValidator(_distinct_ids)] = Field(
        default=(), description="tasks written out; or suite"
    )

    @model_validator(mode="after")
    def _compared(self) -> Spec:
        if self.comparison is not None:
            lanes = list(self.comparison.lanes().values())
            _distinct(lanes, "condition of the comparison")
            if unknown := [lane for lane in lanes if lane not in {condition.id for condition in self.conditions}]:
                raise ValueError(f"comparison of conditions that the spec has, not of {unknown[0]!r}")
        return self


def json_schema() -> str:
    """The JSON Schema of a spec (docs/scorecard.schema.json)."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": dialect} | Spec.model_json_schema(mode="validation"), indent=2) + "\n"
