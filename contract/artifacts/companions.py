"""What goes with the weights into a merged model's folder: config.json, and the tokenizer's and other small files as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from contract.artifacts.kinds import MARKS
from contract.artifacts.merge_plan import Plan
from contract.model.folder import CONFIG
from contract.model.shards import INDEX

_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "additional_chat_templates/*.jinja")
_LEFT = frozenset({CONFIG, INDEX, "manifest.json", *MARKS})
"""config.json is written anew; the others describe the base's own files, or an adapter."""


def copy_companions(base: Path, target: Path) -> None:
    """Copies the base's other files; links are followed, since the hub's cache is made of them."""
    for pattern in _COPIED:
        for path in sorted(base.glob(pattern)):
            if path.is_file() and path.name not in _LEFT:
                copy = target / path.relative_to(base)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def write_config(target: Path, planned: Plan) -> None:
    """Writes config.json: the base's, but for what the merge changes.

    dtype and torch_dtype become float32. Merged weights are float32, and a loader that goes by the base's bfloat16 would round them
    on loading, to which a delta that is small beside its weight is lost; float32 holds what is left in a narrower dtype exactly.
    A head that was untied is so there, too.
    """
    config = dict(planned.base.config) | {"dtype": "float32", "torch_dtype": "float32"}
    if planned.untied:
        config["tie_word_embeddings"] = False
    content = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (target / CONFIG).write_bytes(content.encode())
