"""Tokenising and labelling against the tokenizers library's encode_batch alone, in alternating pairs; medians, MB of UTF-8 a second.

Run: python benchmarks/labels.py [MODEL_FOLDER]    (default: SmolLM2 in the user's cache)

The library uses every core, and labelling one; RAYON_NUM_THREADS=1 in front of the command has both use one. The aim is a ratio of 0.9
or more on one core.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers

from contract.data.labels import last_k, supervised
from contract.data.row import Message, Row
from contract.data.template import load_template
from contract.data.text import Rendered, chatml, plain
from contract.data.tokenizers import HfTokenizer
from contract.worker.files import cache_folder

ROWS, PAIRS, SEQ_LEN, K = 2000, 15, 1024, 16
WORDS = ("the", "of", "and", "that", "was", "with", "this", "have", "from", "which", "word", "model", "answer")


def drawn_rows(count: int) -> list[Row]:
    """Dialogues of about 1 KB: words, numbers, some code and punctuation; none spells a special token."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice((*WORDS, f"{draw.randrange(10**4)},", f"{draw.choice(WORDS)}.\n", "x = f(y)")) for _ in range(words))

    return [
        Row(line=line, messages=(Message(role="user", content=text(60)), Message(role="assistant", content=text(160))))
        for line in range(1, count + 1)
    ]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(name: str, texts: list[str], alone: Callable[[], object], ours: Callable[[], object]) -> None:
    """Prints the medians of alternating pairs."""
    alone(), ours()
    pairs = [(seconds(alone), seconds(ours)) for _ in range(PAIRS)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    library, labelled = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"{name:40} library {megabytes / library:6.2f} MB/s   labelled {megabytes / labelled:6.2f} MB/s   ratio {ratio:.3f}")


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=cache_folder() / "models" / "smollm2-135m")
    path = parser.parse_args().folder / "tokenizer.json"
    library, tokenizer = tokenizers.Tokenizer.from_file(str(path)), HfTokenizer(path)
    template = load_template(path, special_tokens=tokenizer.special_tokens)
    rows, samples = drawn_rows(ROWS), range(ROWS)

    def measure(name: str, render: Callable[[Row], Rendered], label: Callable[[list[Rendered]], object]) -> None:
        rendered = [render(row) for row in rows]
        texts, add = [text.text for text in rendered], rendered[0].add_special_tokens

        def alone() -> object:
            return library.encode_batch(texts, add_special_tokens=add)

        compare(name, texts, alone, lambda: label(rendered))
        compare(f"{name}, and rendering", texts, alone, lambda: label([render(row) for row in rows]))

    print(f"{ROWS} rows, {PAIRS} alternating pairs")
    measure("chatml, supervised", chatml, lambda them: supervised(tokenizer, them, samples=samples, seq_len=SEQ_LEN))
    measure("own template, supervised", template.render, lambda them: supervised(tokenizer, them, samples=samples, seq_len=SEQ_LEN))
    measure("plain, last_k", plain, lambda them: last_k(tokenizer, them, samples=samples, seq_len=SEQ_LEN, k=K))


if __name__ == "__main__":
    main()
