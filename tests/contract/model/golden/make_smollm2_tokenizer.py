"""Makes smollm2_tokenizer.json: token ids of SmolLM2-135M-Instruct's tokenizer, by transformers.

Run: python make_smollm2_tokenizer.py GGUF_FILE

transformers reads the vocabulary and merges from the GGUF file, but not that the pre-tokenizer `smollm` sets every
digit apart (llama.cpp, src/llama-vocab.cpp, and the published tokenizer.json: Digits before ByteLevel). So each text
is cut around its digits here, by Unicode category, and transformers encodes the pieces: BPE never looks across a cut.
"""

import json
import sys
import unicodedata
from itertools import groupby
from pathlib import Path

import tokenizers
import transformers

TEXTS = [
    "",
    " ",
    "Hello world",
    "don't they'll I'M WE'RE",
    "na\u00efve caf\u00e9 \u03a9\u03bc\u03ad\u03b3\u03b1 \u65e5\u672c\u8a9e \U0001f642\U0001f3f3\ufe0f\u200d\U0001f308 e\u0301",
    "12345 3.14159 a1b2 1,000",
    "a  12    7\n\n  8",
    "\u00a0\u00bd \u00b2 \u0663 \u216b",
    "def f(x):\n\treturn x**2 + 0x1F  # 42\n    y = 1\n",
    "x\r\ny\t\t z",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<empty_output><repo_name>foo <|endoftext|>",
]
MESSAGES = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 +  2?"}, {"role": "assistant", "content": "4"}],
]


def main() -> None:
    source = Path(sys.argv[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    def ids(text: str) -> list[int]:
        groups = groupby(enumerate(text), key=lambda pair: pair[0] if unicodedata.category(pair[1])[0] == "N" else -1)
        pieces = ["".join(character for _, character in group) for _, group in groups]
        return [index for piece in pieces for index in tokenizer(piece, add_special_tokens=False)["input_ids"]]

    chats = [tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for messages in MESSAGES]
    content = {
        "made_with": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, {source.name}",
        "texts": [{"text": text, "ids": ids(text)} for text in TEXTS],
        "chats": [{"messages": messages, "text": text, "ids": ids(text)} for messages, text in zip(MESSAGES, chats, strict=True)],
    }
    Path(__file__).with_name("smollm2_tokenizer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
