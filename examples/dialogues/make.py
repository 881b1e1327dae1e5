"""Makes train.jsonl and LICENSE from the ChatterBot corpus' source archive; the same bytes every time.

Run: pip download --no-deps --no-binary chatterbot-corpus chatterbot-corpus==1.3.3
     .venv/bin/python examples/dialogues/make.py chatterbot_corpus-1.3.3.tar.gz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = "chatterbot_corpus-1.3.3"
SHA256 = "615b5c4c605154f60ae51d03ed918ed92e9d32bc2b144b759bbc64ecdbe18481"
"""Of the archive."""

NAMES = ("ai", "botprofile", "conversations", "greetings", "trivia")
"""The English files that are taken. In most others a list holds several answers to one question, one after the other: no dialogue."""

LEFT_OUT = frozenset({"Bend over", "Can you mate", "The male of what species testicles explode on mating and then dies?"})
"""First turns of dialogues that an example does not need."""


def main() -> None:
    """Writes both files beside this one, or into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    sha256 = hashlib.sha256(arguments.archive.read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise SystemExit(f"{arguments.archive}: SHA-256 {sha256}, wanted {SHA256}; download it with the command that --help shows")
    files = members(arguments.archive)
    (arguments.out / "LICENSE").write_bytes(files["license.md"].strip() + b"\n")
    (arguments.out / "train.jsonl").write_bytes(train_file({name: files[f"{name}.yml"] for name in NAMES}))


def members(archive: Path) -> dict[str, bytes]:
    """The files that are used, by their last name."""
    wanted = [f"{ROOT}/license.md", *(f"{ROOT}/chatterbot_corpus/data/english/{name}.yml" for name in NAMES)]
    with tarfile.open(archive) as tar:
        return {name.rpartition("/")[2]: _read(tar, name) for name in wanted}


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def train_file(sources: dict[str, bytes]) -> bytes:
    """JSON Lines of the dialogues of YAML files, in the order of the files and of their dialogues.

    Args:
        sources: category -> the corpus' YAML: {categories: [...], conversations: [[turn, turn, ...], ...]}.
    """
    lines: list[str] = []
    for category, content in sources.items():
        for turns in dialogues(YAML(typ="safe", pure=True).load(content)["conversations"]):
            lines.append(json.dumps(row(turns, category), ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def dialogues(found: list[Any]) -> Iterator[list[str]]:
    """Dialogues of user and assistant in turn, the assistant last: a last turn that nobody answers is left out.

    What is no list of two texts or more is passed over; white space is made single.
    """
    for turns in found:
        if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns) and turns[0] not in LEFT_OUT:
            yield [" ".join(turn.split()) for turn in turns[: len(turns) // 2 * 2]]


def row(turns: list[str], category: str) -> dict[str, Any]:
    """A line of a train file: prompt and response, or messages where there is more than one answer."""
    if len(turns) == 2:
        return {"prompt": turns[0], "response": turns[1], "category": category}
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)], "category": category}


if __name__ == "__main__":
    main()
