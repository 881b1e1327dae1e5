"""Reading a spec, with all that is wrong with it said at once, and what identifies one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contract.errors import ContractError, ContractErrors, brief
from contract.reading import bytes_of
from contract.run.layer import MAX_FAULTS, Layer, Location, layer_of
from contract.run.strict_yaml import parse
from parity.scorecard.spec import Spec
from parity.scorecard.suite import tasks_of
from parity.scorecard.task import Task, digest, sha256_of

MAX_BYTES = 2**20
_REMEDY = "give a scorecard's spec (docs/scorecard.md)"


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """A spec with its tasks. folder: what relative paths of fixtures are relative to. text: the file's, word for word."""

    spec: Spec
    tasks: tuple[Task, ...]
    folder: Path
    text: str

    @property
    def suite_sha256(self) -> str:
        """Of the tasks."""
        return digest(self.tasks)

    @property
    def protocol_sha256(self) -> str:
        """Of what is asked and how, whoever answers and of whatever training seed: the same in every cycle of one evidence."""
        return sha256_of(self._protocol())

    @property
    def spec_sha256(self) -> str:
        """Of the protocol, the seeds and the conditions. Budgets are not in it, so that a run may go on with larger ones."""
        conditions = [condition.model_dump(mode="json") for condition in self.spec.conditions]
        comparison = self.spec.comparison
        compared = None if comparison is None else comparison.model_dump(mode="json")
        return sha256_of(self._protocol() | {"seeds": list(self.spec.seeds), "conditions": conditions, "comparison": compared})

    def _protocol(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "schema_version": spec.schema_version, "prompt_pack_version": spec.prompt_pack_version, "max_retries": spec.max_retries,
            "system": spec.system, "max_new_tokens": spec.budgets.max_new_tokens, "suite": self.suite_sha256,
        }  # fmt: skip


def read_scorecard(path: Path, *, folder: Path | None = None) -> Scorecard:
    """Reads a spec and its tasks.

    Args:
        folder: what fixtures' relative paths are relative to; the spec's own unless given.

    Raises:
        ContractError: no such file, no YAML, one field is not what the spec allows, or the suite has another digest.
        ContractErrors: several fields are not.
    """
    content = bytes_of(path, limit=MAX_BYTES, remedy=_REMEDY)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte {content[error.start]:#04x} at offset {error.start}, which is no UTF-8"
        raise ContractError(str(path), got=got, allowed="UTF-8", remedy="save it as UTF-8") from None
    spec = spec_of(text, str(path))
    return Scorecard(spec=spec, tasks=tasks_of(spec, str(path)), folder=path.parent if folder is None else folder, text=text)


def spec_of(text: str, source: str) -> Spec:
    """The spec that YAML text holds.

    Args:
        source: what messages call it.

    Raises:
        ContractError, ContractErrors: as `read_scorecard`.
    """
    layer = layer_of(source, *parse(text, source))
    faults = dict(layer.faults)
    spec = None
    try:
        spec = Spec.model_validate(dict(layer.values))
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=False)[:MAX_FAULTS]:
            location = _location(fault["loc"], layer.values)
            inside = any(told[: len(location)] == location for told in faults)  # pydantic: a list whose only entry is wrong is too short
            if not inside and not any(location[:n] in faults for n in range(len(location))):
                faults[location] = _fault(fault, location, layer)
    if spec is None or faults:
        found = list(faults.values())[:MAX_FAULTS]
        raise found[0] if len(found) == 1 else ContractErrors(found)
    return spec


def _location(given: Sequence[str | int], values: object) -> Location:
    """A fault's place in the file: pydantic also names the kind by which it chose among models, which the file has no level for."""
    place: list[str | int] = []
    last = len(given) - 1
    for number, part in enumerate(given):
        inside = isinstance(values, Mapping) and part in values
        if inside or (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            place.append(part)
            values = values[part]  # type: ignore[index]
        elif number == last and isinstance(values, Mapping) and part != values.get("kind"):
            place.append(part)
    return tuple(place)


def _fault(fault: Any, location: Location, layer: Layer) -> ContractError:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    place, kind = layer.place(location), fault["type"]
    if kind == "missing":
        return ContractError(place, got="nothing", allowed="a value; the field is required", remedy="give it")
    if kind == "extra_forbidden":
        return ContractError(place, got="an unknown field", allowed="the fields of docs/scorecard.schema.json", remedy="remove it")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return ContractError(place, got=brief(fault["input"]), allowed=message, remedy="correct its kind")
    return ContractError(place, got=brief(fault["input"]), allowed=message[:1].lower() + message[1:], remedy="correct it")
