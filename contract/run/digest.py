"""A contract's identity: a digest that any program can compute.

SHA-256 over canonical JSON (RFC 8785: keys sorted, no white space, numbers as JavaScript writes them), all fields in it, defaults
filled in; so it does not depend on the format, on what the file leaves out, on the machine or on Python's version. A new field of
the contract changes every digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from contract.run.spec import FineTuneContract

UNORDERED: tuple[tuple[str, str], ...] = (("model", "weight_shards"), ("adapter", "target_modules"))
"""Lists whose order means nothing: sorted by code point before they are digested."""

NOT_FOR_PARITY: tuple[tuple[str, ...], ...] = (
    ("lane",),
    ("stack",),
    ("exec", "device"),
    ("exec", "allow_cpu_fallback"),
    ("exec", "seed"),
    ("model", "hf_repo"),
    ("model", "weight_shards"),
    ("model", "config_json"),
    ("model", "tokenizer_json"),
    ("data", "train_file"),
    ("exec", "resume_from"),
)
"""What may differ between a run that was gated and the run that this permits. `hf_repo` is among the paths: it may be a folder, one
model has several names, and which bytes were meant is said by the content hashes beside the digest (contract/run/content.py). `stack`
goes with the lane: the run that names none in research must name its stack in production, and is the same run."""

EXACT = 2**53 - 1
"""The largest integer that RFC 8785 writes as a number; a larger one is written as a string (its appendix D)."""


def digest(contract: FineTuneContract) -> str:
    """64 hexadecimal digits; every field counts."""
    return _sha256(canonical_contract(contract))


def run_digest(contract: FineTuneContract) -> str:
    """The digest of the contract as it was when the run began, without exec.resume_from: what a checkpoint is bound to."""
    return digest(contract.model_copy(update={"exec": contract.exec.model_copy(update={"resume_from": None})}))


def parity_digest(contract: FineTuneContract) -> str:
    """64 hexadecimal digits; all counts but NOT_FOR_PARITY, so that a gate passed in research holds for the same run in production."""
    return _sha256(canonical_contract(contract, parity=True))


def canonical_contract(contract: FineTuneContract, *, parity: bool = False) -> str:
    """The text that `digest`, or `parity_digest`, is of."""
    values = contract.model_dump(mode="json")
    for section, name in UNORDERED:
        values[section][name] = sorted(values[section][name])
    for *above, name in NOT_FOR_PARITY if parity else ():
        del (values[above[0]] if above else values)[name]
    return canonical_json(values)


def differing(one: FineTuneContract, other: FineTuneContract) -> list[str]:
    """The dotted names of the fields in which two contracts differ, in order; where they have one digest, none."""
    left, right = (json.loads(canonical_contract(contract)) for contract in (one, other))
    return _differing(left, right, "")


def canonical_json(value: Any) -> str:
    """RFC 8785 text of a JSON value; finite numbers and whole Unicode only, which a contract's fields are."""
    if isinstance(value, dict):
        pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
        return "{" + ",".join(f"{canonical_json(key)}:{canonical_json(inner)}" for key, inner in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int) and abs(value) > EXACT:
        return f'"{value}"'
    return json.dumps(value, ensure_ascii=False)


def _differing(left: Any, right: Any, place: str) -> list[str]:
    if left == right:
        return []
    if not (isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys()):
        return [place]
    return [name for key in left for name in _differing(left[key], right[key], f"{place}.{key}" if place else key)]


def _number(value: float) -> str:
    """ECMAScript's Number::toString (ECMA-262, 6.1.6.1.20): the shortest digits that read back, as Python's repr finds them."""
    sign, text = ("-", repr(-value)) if value < 0 else ("", repr(abs(value)))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(digits) - len(fraction) + int(exponent or 0)  # value = 0.digits x 10^point
    digits = digits.rstrip("0")
    if not digits:
        return "0"
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
