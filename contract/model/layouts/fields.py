"""Sorting the fields of a config.json: honoured, known to change nothing, or refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from contract.errors import ContractError, ContractErrors, brief

ANOTHER = "take another checkpoint"
CORRECT = "set it right, or take another checkpoint"

MANY = 2**31 - 1

_LISTED = 8
"""Unknown fields that are named at most; the nearest known name costs a millisecond each."""


@dataclass(frozen=True, kw_only=True)
class Only:
    """A field that would change the function, and the values with which it does not."""

    values: tuple[Any, ...]
    remedy: str = ANOTHER

    def allows(self, value: object) -> bool:
        """Whether the value is one of them: of its type too, since to Python True is 1."""
        return any(type(value) is type(allowed) and value == allowed for allowed in self.values)


DROPOUT = Only(values=(0, 0.0), remedy="the dropouts of a frozen base are not applied here; set it to 0 to go on without")

ONLY: Mapping[str, Only] = {
    "auto_map": Only(values=(None,), remedy="a checkpoint with code of its own is not run; take one of a known model_type"),
    "is_causal": Only(values=(True,)),
    "is_encoder_decoder": Only(values=(False,)),
    "quantization_config": Only(values=(None,), remedy="its weights are quantised already; take the checkpoint that it was made from"),
}
"""For every architecture. Of is_causal false, and of null, transformers makes a mask that is not causal."""

GENERATION = frozenset(
    {
        "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens", "diversity_penalty",
        "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
        "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
        "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
        "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
        "suppress_tokens", "target_lookbehind", "temperature", "top_k", "top_p", "typical_p", "use_cache",
    }
)  # fmt: skip
"""How text is drawn from logits, as transformers 4 saved it among the model's fields."""

NO_EFFECT = GENERATION | frozenset(
    {
        "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "_num_labels", "architectures", "bos_token_id",
        "chunk_size_feed_forward", "dtype", "eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "label2id",
        "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
        "task_specific_params", "torch_dtype", "transformers.js_config", "transformers_version",
    }
)  # fmt: skip
"""Fields that say nothing of the function: names, token ids, labels of another head, how weights were drawn or are stored."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The fields of one architecture.

    honoured: they go into the layout. silent: what transformers takes where config.json has no such field, or null.
    null: fields in which null has a meaning of its own. only, no_effect: beside those of every architecture.
    """

    model_type: str
    honoured: frozenset[str]
    silent: Mapping[str, Any]
    null: frozenset[str] = frozenset()
    only: Mapping[str, Only] = field(default_factory=dict)
    no_effect: frozenset[str] = frozenset()

    @property
    def all_only(self) -> Mapping[str, Only]:
        """Every field that has but some values that change nothing."""
        return {**ONLY, **self.only}

    @property
    def names(self) -> frozenset[str]:
        """Every field that is known."""
        return self.honoured | self.all_only.keys() | self.no_effect | NO_EFFECT | {"model_type"}


def sift(config: Mapping[str, Any], known: Known, where: str) -> dict[str, Any]:
    """The honoured fields of a config.json, with what silence means.

    Raises:
        ContractError: a field that is not known, or has a value that is not honoured; names it.
        ContractErrors: several of those.
    """
    faults = [_unknown(name, config[name], known, where) for name in islice((name for name in config if name not in known.names), _LISTED)]
    for name, only in known.all_only.items():
        if name in config and not only.allows(config[name]):
            allowed = " or ".join(map(repr, only.values))
            faults.append(
                ContractError(f"{where}: {name}", got=f"{brief(config[name])}, not honoured", allowed=allowed, remedy=only.remedy)
            )
    if faults:
        raise faults[0] if len(faults) == 1 else ContractErrors(faults)
    honoured = dict(known.silent)
    for name in known.honoured & config.keys():
        if config[name] is not None or name in known.null:
            honoured[name] = config[name]
    return honoured


def _unknown(name: str, value: object, known: Known, where: str) -> ContractError:
    nearest = difflib.get_close_matches(name[:64], known.names, n=1)
    return ContractError(
        f"{where}: {brief(name)}",
        got=f"{brief(value)} in a field that is not known, and may change the function",
        allowed=f"the fields of {known.model_type}{f' (nearest: {nearest[0]})' if nearest else ''}",
        remedy="remove it if it changes nothing",
    )


def require(honoured: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuses silence, or null, where it has no meaning.

    Raises:
        ContractError: one of the fields is not there.
        ContractErrors: several are not.
    """
    faults = [
        ContractError(f"{where}: {name}", got="nothing", allowed="a value; the field is required", remedy=CORRECT)
        for name in names
        if name not in honoured
    ]
    if faults:
        raise faults[0] if len(faults) == 1 else ContractErrors(faults)


def quotient(honoured: Mapping[str, Any], where: str) -> int:
    """head_dim where config.json gives none: hidden_size / num_attention_heads.

    Raises:
        ContractError: it's no whole number.
    """
    width, heads = honoured["hidden_size"], honoured["num_attention_heads"]
    if type(width) is int and type(heads) is int and heads >= 1 and width % heads == 0:
        return width // heads
    raise ContractError(
        f"{where}: head_dim",
        got=f"nothing, and hidden_size {brief(width)} is no multiple of num_attention_heads {brief(heads)}",
        allowed="a value; without one, sizes that divide",
        remedy="give head_dim",
    )
