"""A stack that writes a text of its own, a byte a token, whatever it is asked; the device's name says what goes wrong.

Its tokenizer's ids are bytes by GPT-2's alphabet, then <|im_start|> and <|im_end|>. Run: python writing_stack.py --device NAME.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from contract.errors import ContractError
from contract.worker.generation import Answer, Generated, Generation
from contract.worker.serve import Channel, serve
from contract.worker.stack import NotSupported, Reply

TEXT = "Grüße: €\x1b[2J"
"""Letters of two and three bytes, and an escape sequence that clears a terminal."""

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|im_start|>", "<|im_end|>")
EOS = len(ALPHABET) + 1

CAPABILITIES: Mapping[str, Any] = {
    "protocol": 1, "lane": "production", "extra": "none", "packages": [], "requests": ["generate", "cancel", "close"], "operations": {},
    "devices": ["GOOD", "SLOW", "REFUSES", "LACKS", "FAILS", "DIES", "LIES", "COMPILES"],
    "graphs": {"architectures": {"llama": ["float32"]}, "nf4": False, "paths": []},
}  # fmt: skip


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(ALPHABET)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def described(folder: Path, *devices: str) -> None:
    """parity.toml and capabilities.json for this stack, the named devices first."""
    capabilities = dict(CAPABILITIES) | {"devices": [*devices, *CAPABILITIES["devices"]]}
    (folder / "capabilities.json").write_text(json.dumps(capabilities))
    command = json.dumps([sys.executable, __file__])
    (folder / "parity.toml").write_text(f'[stacks.writing]\ncommand = {command}\ncapabilities = "capabilities.json"\n')


class WritingStack:
    """Writes TEXT and the end of sequence, a token a frame."""

    def __init__(self, device: str, channel: Channel) -> None:
        self._device, self._channel = device, channel

    def generate(self, **values: Any) -> Reply:
        request = Generation.model_validate(values)
        self._spoil(request)
        ids = [*tokenizer().encode(TEXT).ids, EOS][: request.max_new_tokens]
        for done, token in enumerate(ids):
            if self._channel.cancelled:
                return self._answer(request, ids[:done], "cancelled")
            self._channel.progress(new=[[row, token] for row in range(len(request.prompts))])
            if self._device == "SLOW":
                time.sleep(60 if done == 3 and not self._waited() else 0.01)
        return self._answer(request, ids, "stop" if ids[-1] == EOS else "length")

    def _waited(self) -> bool:
        """Until it's cancelled, a minute at most."""
        deadline = time.monotonic() + 60
        while not self._channel.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        return True

    def _spoil(self, request: Generation) -> None:
        self._channel.progress(loaded=1, of=2)
        if self._device == "COMPILES":
            self._channel.progress(compiled=1, of=4)
        if self._device == "REFUSES":
            raise ContractError("adapter: vocab", got="1", allowed="2", remedy="take another")
        if self._device == "LACKS":
            raise NotSupported("there is no such thing; allowed: others")
        if self._device == "FAILS":
            raise ValueError("the logits hold NaN or infinity")
        if self._device == "DIES":
            os._exit(3)

    def _answer(self, request: Generation, ids: list[int], finish: Any) -> Reply:
        if self._device == "LIES":
            return Reply(values={"sequences": []})
        sequences = tuple(Generated(ids=tuple(ids), finish=finish) for _ in request.prompts)
        note = f"{len(request.prompts)} prompts, base {request.base}"
        compiling = 1.5 if self._device == "COMPILES" else 0.0
        answer = Answer(sequences=sequences, load_seconds=0.5, compile_seconds=compiling, seconds=2.0, notes=(note,))
        return Reply(values=answer.model_dump(mode="json"))


if __name__ == "__main__":
    serve(f"{Path(__file__).stem}:WritingStack")
