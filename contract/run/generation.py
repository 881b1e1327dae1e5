"""What `finetune generate` asks of a stack: files found and held against each other, prompts as ids, before a worker starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.artifacts.by_path import by_path, require_causal
from contract.artifacts.convert import Source, read_source
from contract.artifacts.merge_plan import open_base
from contract.artifacts.merge_plan import plan as plan_merge
from contract.data.prompt import Template, encode, render
from contract.data.template import ChatTemplate, load_template
from contract.data.tokenizers import HfTokenizer, Tokenizer
from contract.data.vox import VoxTokenizer
from contract.errors import ContractError, brief
from contract.model import folder
from contract.model.checkpoint import open_checkpoint
from contract.model.folder import CONFIG, TOKENIZER
from contract.model.layout import Layout
from contract.model.zoo import KNOWN
from contract.reading import json_file
from contract.run.spec import Base, TokenizerMode
from contract.worker.discover import StackInfo
from contract.worker.generation import Dtype, Generation, Sampling

USUAL_TOKENS = 256
"""New tokens at most, where nothing else is asked for and the model has positions for them."""

REQUEST = "generate"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; None: not said."""

    model: str
    adapter: Path | None
    prompts: Sequence[str]
    system: str | None
    template: Template
    tokenizer: TokenizerMode
    stack: str | None
    device: str | None
    base: Base | None
    dtype: Dtype
    max_new_tokens: int | None
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request, and what answers it. left_out: what the adapter's files say beyond what a graph takes."""

    request: Generation
    stack: StackInfo
    device: str
    tokenizer: Tokenizer
    left_out: tuple[str, ...]


def prepare(asked: Asked, stacks: Mapping[str, StackInfo]) -> Prepared:
    """Finds the files and makes the request.

    Raises:
        ContractError, ContractErrors: a file that is not sound; an adapter of another model; a stack or device that there is not, or that
            has no such graph; prompts that leave no position for what is asked for.
        MissingError: a model that was not fetched, or a stack that is not installed.
    """
    if not asked.prompts:
        raise ContractError("--prompt", got="none", allowed="one or more, or --prompt-file", remedy="give one")
    home = folder.locate(asked.model, place="--model").resolve()
    layout = open_checkpoint(home).layout
    stack = _stack(asked, stacks, layout)
    source = None if asked.adapter is None else _source(asked.adapter, home, layout)
    tokenizer, chat = _tokenizer(asked, home, layout)
    prompts = encode(tokenizer, render(asked.prompts, system=asked.system, template=asked.template, chat=chat))
    request = Generation(
        model=asked.model if asked.model in KNOWN else str(home),  # a known one is held against its hash
        adapter=None if asked.adapter is None else str(asked.adapter.resolve()),
        base=asked.base,
        dtype=asked.dtype,
        prompts=tuple(map(tuple, prompts)),
        max_new_tokens=_new_tokens(asked, prompts, layout),
        stop=_stop(home, tokenizer, layout),
        sampling=asked.sampling,
    )
    device = asked.device or stack.capabilities.devices[0]
    return Prepared(request=request, stack=stack, device=device, tokenizer=tokenizer, left_out=() if source is None else source.left_out)


def _stack(asked: Asked, stacks: Mapping[str, StackInfo], layout: Layout) -> StackInfo:
    """The stack that was named, else the first one that generates, one of the production lane before others."""
    able = [name for name, info in stacks.items() if REQUEST in info.capabilities.requests]
    ordered = sorted(able, key=lambda name: (stacks[name].capabilities.lane != "production", name))
    name = asked.stack or (ordered[0] if ordered else "")
    if name not in able:
        got = f"stack {brief(asked.stack)}" if asked.stack else "no stack"
        raise ContractError("--stack", got=got, allowed=", ".join(ordered) or "none that is here", remedy="name one that generates text")
    info = stacks[name]
    info.require_installed()
    if asked.device is not None and asked.device not in info.capabilities.devices:
        raise ContractError("--device", got=brief(asked.device), allowed=", ".join(info.capabilities.devices), remedy="name one of them")
    graphs = info.capabilities.graphs
    dtypes = () if graphs is None else graphs.architectures.get(layout.model_type, ())
    if asked.dtype not in dtypes:
        allowed = ", ".join(dtypes) or f"another model: {name} has {', '.join(graphs.architectures) if graphs else 'no graph'}"
        raise ContractError(
            "--model", got=f"{layout.model_type} in {asked.dtype}", allowed=allowed, remedy="take another --dtype or --stack"
        )
    lacking = sorted(set(layout.options) - set(graphs.layout_options if graphs else ()))
    if lacking:
        raise ContractError("--model", got=", ".join(lacking), allowed="what the stack's graph has", remedy="take another model or --stack")
    return info


def _source(path: Path, home: Path, layout: Layout) -> Source:
    source = read_source(path)
    plan_merge(source.adapter, open_base(home))
    require_causal(by_path(source.adapter, layout), str(path))
    return source


def _tokenizer(asked: Asked, home: Path, layout: Layout) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer, and the model's own chat template where it is asked for."""
    found: Tokenizer
    chat: ChatTemplate | None = None
    if asked.tokenizer == "vox":
        if asked.template == "tokenizer":
            raise ContractError(
                "--template", got="tokenizer with --tokenizer vox", allowed="chatml, none", remedy="the table has no template of its own"
            )
        place, found = "--tokenizer", VoxTokenizer()
    else:
        own = HfTokenizer(home / TOKENIZER)
        chat = load_template(home / TOKENIZER, special_tokens=own.special_tokens) if asked.template == "tokenizer" else None
        place, found = str(home / TOKENIZER), own
    if found.vocab_size > layout.vocab_size:
        raise ContractError(
            place, got=f"ids 0 to {found.vocab_size - 1:,}, and a model of vocab_size {layout.vocab_size:,}",
            allowed="an embedding for each id", remedy="take the tokenizer that belongs to the model",
        )  # fmt: skip
    return found, chat


def _new_tokens(asked: Asked, prompts: Sequence[Sequence[int]], layout: Layout) -> int:
    longest, positions = max(map(len, prompts)), layout.max_position_embeddings
    wanted = asked.max_new_tokens or max(1, min(USUAL_TOKENS, positions - longest))
    if longest + wanted > positions:
        number = max(range(len(prompts)), key=lambda index: len(prompts[index])) + 1
        raise ContractError(
            "--max-new-tokens", got=f"{wanted} after prompt {number} of {longest} tokens",
            allowed=f"{positions} positions in all (max_position_embeddings)", remedy="lower it, or shorten the prompt",
        )  # fmt: skip
    return wanted


def _stop(home: Path, tokenizer: Tokenizer, layout: Layout) -> tuple[int, ...]:
    """The token that training ends a row with, the Vox table's end of a turn, and those that config.json names as eos_token_id."""
    named = json_file(home / CONFIG).get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    own = {index for index in ids if type(index) is int and 0 <= index < layout.vocab_size}
    turn = {tokenizer.im_end_id} if isinstance(tokenizer, VoxTokenizer) else set()
    return tuple(sorted({tokenizer.eos_id, *own, *turn}))
