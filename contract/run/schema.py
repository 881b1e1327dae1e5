"""The contract's JSON Schema, for editors and for programs in other languages."""

from __future__ import annotations

import json

from contract.run.spec import FineTuneContract

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """The JSON Schema of a whole contract (docs/contract.schema.json).

    It says what each field may hold. What goes with what is said by `finetune plan`.
    """
    schema = FineTuneContract.model_json_schema(mode="validation")
    for definition in (schema, *schema["$defs"].values()):
        for field in definition["properties"].values():
            if "patternProperties" in field:
                field["additionalProperties"] = False  # pydantic lets the schema say nothing of a key that does not match
    return json.dumps({"$schema": DIALECT} | schema, indent=2) + "\n"
