"""`finetune generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def generate(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A known name, a folder (base or merged), or a hub id.")],
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="A v2, v3 or PEFT adapter, or a training checkpoint.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What to answer; repeatable.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8, a prompt a line; - is standard input.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system turn of every prompt.")] = None,
    template: Annotated[
        Literal["chatml", "tokenizer", "none"], typer.Option(help="tokenizer: the model's own; none: the text as it is.")
    ] = "chatml",
    tokenizer: Annotated[Literal["hf", "vox"], typer.Option(help="hf: the model's tokenizer.json; vox: the fixed table.")] = "hf",
    stack: Annotated[str | None, typer.Option(metavar="NAME", help="torch_qlora, unless named.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="CPU, CUDA, WEBGPU, ...; else the stack's first.")] = None,
    base: Annotated[Literal["none", "nf4"] | None, typer.Option(help="How the base is held; else as the adapter was trained.")] = None,
    dtype: Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="Of activations and products.")] = "float32",
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most; 256 unless given.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn with a temperature.")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="JSON: ids, text, seconds, tokens a second.")] = False,
) -> None:
    """Writes on from prompts with a model, an adapter on it, or a merged model."""
    from contract.commands.generation import prompts_of, run, tell
    from contract.errors import ContractError, Interrupted
    from contract.run.generation import Asked, prepare
    from contract.worker.discover import discover
    from contract.worker.generation import Sampling

    if not 0 < top_p <= 1 or not temperature < float("inf"):
        name, value = ("--top-p", top_p) if not 0 < top_p <= 1 else ("--temperature", temperature)
        raise ContractError(name, got=str(value), allowed="over 0, 1 at most" if name == "--top-p" else "finite", remedy="correct it")
    if seed >= 2**63:
        raise ContractError("--seed", got=str(seed), allowed="under 2^63", remedy="take a smaller one")
    asked = Asked(
        model=model, adapter=adapter, prompts=prompts_of(prompt or [], prompt_file), system=system, template=template,
        tokenizer=tokenizer, stack=stack,
        device=None if device is None else device.upper(), base=base, dtype=dtype, max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
    )  # fmt: skip
    prepared = prepare(asked, discover())
    done = run(prepared, stream=not as_json)
    tell(asked, prepared, done.answer, as_json=as_json, streamed=done.streamed)
    if done.interrupted:
        raise Interrupted("stopped; what is shown was generated before")
