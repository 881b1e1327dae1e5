"""The request `score`, by the public calls that a user of these files would make; nothing of ours reads them.

    AutoModelForCausalLM.from_pretrained(model)    PeftModel.from_pretrained(that, adapter)

In float32 alone: transformers' norms and rotary tables compute in float32 whatever the model's dtype is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from contract.worker.score import LOGITS, Score
from contract.worker.stack import NotSupported, Reply, Tensors

_DTYPE = "float32"
_PEFTS = "adapter_model.safetensors"


def respond(values: Mapping[str, Any], tensors: Tensors) -> Reply:
    """The request's answer.

    Raises:
        NotSupported: another dtype, an NF4 base, a pass through a cache, packed or padded tokens, an adapter that is not PEFT's.
        ValueError: no ids; a file that transformers or PEFT does not wholly take, or that leaves something of the model unset.
    """
    request = Score.model_validate(dict(values))
    _require_supported(request, tensors)
    with torch.no_grad():
        logits_BTV = _model(request)(input_ids=torch.from_numpy(tensors["ids"].copy()), use_cache=False).logits
    return Reply(tensors={LOGITS: logits_BTV.numpy()})


def _require_supported(request: Score, tensors: Tensors) -> None:
    if request.dtype != _DTYPE:
        raise NotSupported(f"peft_witness scores in {_DTYPE}, not in {request.dtype}: transformers' norms compute in float32 in any dtype")
    if request.base == "nf4":
        raise NotSupported("peft_witness scores on a plain base alone; leave base out, or ask torch_qlora")
    if request.prompt is not None:
        raise NotSupported("peft_witness has no pass through a cache; leave prompt out")
    if set(tensors) - {"ids"}:
        raise NotSupported("peft_witness takes whole sequences alone; leave positions and segments out")
    if "ids" not in tensors:
        raise ValueError("score: ids are missing; give ids [sequences, tokens]")


def _model(request: Score) -> torch.nn.Module:
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True, "use_safetensors": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(request.model, output_loading_info=True, **how)
    model, found = loaded
    left = {what: sorted(map(str, names)) for what, names in found.items() if names}
    if left:
        raise ValueError(f"{request.model}: transformers found {left}; a checkpoint must have every weight of its model, and no other")
    if request.adapter is None:
        return _plain(model)
    if not (Path(request.adapter) / _PEFTS).is_file():  # PEFT would look for a pickle in its place
        raise NotSupported(f"peft_witness reads PEFT's adapters alone, and {request.adapter} has no {_PEFTS}; convert it: finetune convert")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, request.adapter)
    strange = [str(one.message) for one in said if issubclass(one.category, UserWarning)]
    if strange:  # of a tensor that is missing PEFT only warns
        raise ValueError(f"{request.adapter}: PEFT says: {strange[0]}")
    return _plain(adapted)


def _plain(model: torch.nn.Module) -> torch.nn.Module:
    """A model as it is used, all of it in float32.

    Raises:
        ValueError: a weight is of another dtype.
    """
    strange = sorted({str(parameter.dtype) for parameter in model.parameters()} - {"torch.float32"})
    if strange:
        raise ValueError(f"a weight is {strange[0]}, though float32 was asked for; look into config.json")
    return model.eval()
