"""Makes a small GPT-2 model for the Vox tokenizer, and the rows that it learns from; the same bytes every time.

Run: .venv/bin/python examples/vox/make.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain, pairwise, zip_longest
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent

VOCABULARY, POSITIONS = 131, 256
CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 4, "n_head": 4,
    "n_positions": POSITIONS, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
SEED = 131

NAMES = ("user", "order", "invoice", "ticket", "message", "payment", "device", "report", "session", "account", "recipe", "sensor")
FIELDS = ("name", "total", "count", "title", "price", "level", "state", "note", "size", "rate", "score", "code")
VERBS = ("load", "save", "send", "check", "close", "print", "merge", "count", "clear", "start", "stop", "sort")
OPERATIONS = (("add", "+"), ("subtract", "-"), ("multiply", "*"), ("divide", "/"))
COMPARISONS = (("equal to", "=="), ("other than", "!="), ("at least", ">="), ("at most", "<="))


def main() -> None:
    """Writes the model into a folder, and the rows into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a folder for the model")
    parser.add_argument("--rows", type=Path, default=FOLDER / "train.jsonl", help="a file for the rows")
    arguments = parser.parse_args()
    write_model(arguments.model)
    arguments.rows.write_bytes(train_file())


def write_model(folder: Path, *, seed: int = SEED, layers: int = 4, width: int = 128) -> None:
    """A folder as Hugging Face has them: config.json and model.safetensors, its weights drawn with a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"n_layer": layers, "n_embd": width}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights(seed=seed, layers=layers, width=width), folder / "model.safetensors", metadata={"format": "pt"})


def weights(*, seed: int, layers: int, width: int) -> dict[str, np.ndarray]:
    """GPT-2's weights by their keys, float32; a linear's lie [in, out], of variance 1 / in: what comes out is as large as what goes in."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, deviation: float) -> np.ndarray:
        return (deviation * generator.standard_normal(shape)).astype(np.float32)

    found = {
        "wte.weight": normal(VOCABULARY, width, deviation=0.1), "wpe.weight": normal(POSITIONS, width, deviation=0.02)
    }  # fmt: skip
    for layer in range(layers):
        linears = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        linears |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
        for name, shape in linears.items():
            found[f"h.{layer}.{name}.weight"] = normal(*shape, deviation=shape[0] ** -0.5)
            found[f"h.{layer}.{name}.bias"] = np.zeros(shape[1], np.float32)
    for name in (*(f"h.{layer}.{norm}" for layer in range(layers) for norm in ("ln_1", "ln_2")), "ln_f"):
        found |= {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}
    return found


def train_file() -> bytes:
    """JSON Lines: a row of each kind in turn, so that the first ones show all of them."""
    kinds = (functions(), comparisons(), types(), tables(), queries(), mutations(), actors(), workflows(), tests(), matches(), calls())
    rows = [row for row in chain.from_iterable(zip_longest(*kinds)) if row is not None]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def paired(first: tuple[str, ...], second: tuple[str, ...], *, shifts: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Each word of one list with one of another, as often as there are shifts."""
    for shift in shifts:
        yield from zip(first, second[shift:] + second[:shift], strict=True)


def row(category: str, prompt: str, response: str) -> dict[str, str]:
    """A line of a train file."""
    return {"prompt": prompt, "response": response, "category": category}


def functions() -> Iterator[dict[str, str]]:
    """Arithmetic on two numbers."""
    for word, sign in OPERATIONS:
        for first, second in pairwise(FIELDS):
            yield row(
                "function",
                f"{word} {first} and {second}",
                f"fn {word}({first}: int, {second}: int) -> int {{ ret {first} {sign} {second} }}",
            )


def comparisons() -> Iterator[dict[str, str]]:
    """Whether a number is as wanted."""
    for word, sign in COMPARISONS:
        for field in FIELDS:
            yield row("function", f"is {field} {word} limit?", f"fn check({field}: int, limit: int) -> bool {{ ret {field} {sign} limit }}")


def types() -> Iterator[dict[str, str]]:
    """A type of two fields."""
    for name, field in paired(NAMES, FIELDS, shifts=(5, 7, 10)):
        yield row("type", f"a type {name} with {field}", f"type {name.title()} = {{ id: int, {field}: str }}")


def tables() -> Iterator[dict[str, str]]:
    """A table of such a type."""
    for name in NAMES:
        yield row("table", f"a table of {name}s", f"@table type {name.title()} {{ id: int, name: str }}")


def queries() -> Iterator[dict[str, str]]:
    """What is read from a table."""
    for name in NAMES:
        yield row("query", f"all {name}s", f"@query fn all_{name}s() -> list[{name.title()}] {{ ret db.{name}.all() }}")
        yield row("query", f"one {name} by id", f"@query fn get_{name}(id: int) -> {name.title()} {{ ret db.{name}.get(id) }}")


def mutations() -> Iterator[dict[str, str]]:
    """What is written to it."""
    for name in NAMES:
        yield row("mutation", f"remove a {name}", f"@mutation fn remove_{name}(id: int) -> bool {{ ret db.{name}.remove(id) }}")


def actors() -> Iterator[dict[str, str]]:
    """What answers messages."""
    for verb, name in paired(VERBS, NAMES, shifts=(0,)):
        yield row("actor", f"an actor that can {verb} a {name}", f"actor {name.title()}s {{ on {verb}({name}) => {verb}_{name}({name}) }}")
        yield row("actor", f"start the actor of {name}s", f"let {name}s = spawn({name.title()}s)")


def workflows() -> Iterator[dict[str, str]]:
    """Steps that are done one after the other."""
    for shift, name in enumerate(NAMES[:3], start=1):
        for first, second in paired(VERBS, VERBS, shifts=(shift,)):
            yield row(
                "workflow", f"{first} and {second} a {name}",
                f"workflow {first}_{name}({name}) {{ activity {first}({name}) activity {second}({name}) }}",
            )  # fmt: skip


def tests() -> Iterator[dict[str, str]]:
    """What is asserted of a function."""
    for number, (word, sign) in enumerate(OPERATIONS * 6, start=2):
        yield row(
            "test",
            f"test that {word} works on {number} and {number}",
            f"@test fn test_{word}() {{ assert {word}({number}, {number}) == {number} {sign} {number} }}",
        )


def matches() -> Iterator[dict[str, str]]:
    """A choice by a value."""
    for name, field in paired(NAMES, FIELDS, shifts=(3, 8)):
        yield row("match", f"{field} of a {name}, or none", f"match {name} {{ Some(found) => found.{field}, None => 0 }}")


def calls() -> Iterator[dict[str, str]]:
    """What is imported and called."""
    for verb, name in paired(VERBS, NAMES, shifts=(4, 9)):
        yield row("call", f"import {name}s and {verb} one", f"import std::{name}s let done = {name}s::{verb}(1)")


if __name__ == "__main__":
    main()
