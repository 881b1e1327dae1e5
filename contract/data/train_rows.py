"""A run's data, from its contract: rows become text, text becomes ids and labels, examples become optimiser steps.

Both stacks take what comes out of here, so neither has a say in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contract.data import labels
from contract.data.curriculum import training_order
from contract.data.index import Progress, RowIndex, open_index, train_file
from contract.data.labels import Labelled
from contract.data.order import HeldBack, Split
from contract.data.row import Example, Row
from contract.data.steps import Steps
from contract.data.template import ChatTemplate, load_template
from contract.data.text import Rendered, chatml, plain
from contract.data.tokenizers import HfTokenizer, Tokenizer
from contract.data.vox import VoxTokenizer
from contract.errors import ContractError
from contract.run.spec import FineTuneContract


class TrainRows:
    """The rows of a contract's train file as examples and steps.

    Attributes:
        index: the rows that the filters leave.
        split: which of them are held back for validation.
        tokenizer: text to ids and back.
    """

    def __init__(
        self,
        contract: FineTuneContract,
        *,
        tokenizer_json: Path | None = None,
        cache: Path | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Opens index and tokenizer.

        Args:
            tokenizer_json: the model's, which tokenizer_mode hf needs.
            cache: the folder for index files; else the user's.
            progress: told bytes of the train file read, and bytes in all.

        Raises:
            ContractError: the train file, the tokenizer or the chat template is not sound, or is missing.
            EnvironmentUnfit: the cache folder can't be written.
        """
        self.index: RowIndex = open_index(train_file(contract.data), contract.data, cache=cache, progress=progress)
        self.split = Split(self.index.kept, contract.data.validation_split, contract.exec.seed)
        self._contract = contract
        self._template: ChatTemplate | None = None
        if contract.data.tokenizer_mode == "vox":
            self.tokenizer: Tokenizer = VoxTokenizer()
            return
        if tokenizer_json is None:
            raise ContractError(
                "model.tokenizer_json", got="nothing", allowed="a tokenizer.json, for data.tokenizer_mode hf", remedy="name the file"
            )
        tokenizer = HfTokenizer(tokenizer_json)
        self.tokenizer = tokenizer
        if contract.objective == "chatml_supervised" and contract.data.template == "tokenizer":
            self._template = load_template(tokenizer_json, special_tokens=tokenizer.special_tokens)

    def rendered(self, row: Row) -> Rendered:
        """A row as text, by the contract's objective and template.

        Raises:
            ContractError: the chat template refuses it.
        """
        data = self._contract.data
        if data.system_prompt is not None:
            row = row.with_system(data.system_prompt)
        if self._contract.objective == "last_k":
            return plain(row, parse_special_tokens=data.parse_special_tokens)
        if self._template is not None:
            return self._template.render(row, parse_special_tokens=data.parse_special_tokens)
        return chatml(row, parse_special_tokens=data.parse_special_tokens)

    def labelled(self, numbers: Sequence[int]) -> Labelled:
        """Rows by their numbers in the index, as ids and labels; those without a token to learn apart.

        Raises:
            ContractError: a row that can't be rendered or encoded, or a train file that has changed.
        """
        texts = [self.rendered(self.index.row(number)) for number in numbers]
        run = self._contract.exec
        if self._contract.objective == "last_k":
            return labels.last_k(self.tokenizer, texts, samples=numbers, seq_len=run.seq_len, k=run.ce_last_k)
        truncation = self._contract.data.truncation
        return labels.supervised(self.tokenizer, texts, samples=numbers, seq_len=run.seq_len, truncation=truncation)

    def examples(self, numbers: Sequence[int]) -> list[Example | None]:
        """As `labelled`, in the order asked for; None for a row without a token to learn.

        Raises:
            ContractError: as `labelled`.
        """
        examples = {example.sample: example for example in self.labelled(numbers).examples}
        return [examples.get(number) for number in numbers]

    def steps(self, progress: Progress = lambda done, total: None) -> Steps:
        """The optimiser steps of the run; with packing, every row is made into an example once before.

        Args:
            progress: told rows made into examples, and all of them, with packing.

        Raises:
            ContractError: a curriculum by difficulty, and no row has one; or as `labelled`.
        """
        run = self._contract.exec
        return Steps(
            training_order(self.index, self._contract.data, self.split, run.seed),
            self.examples,
            batch_size=run.batch_size,
            grad_accum=run.grad_accum,
            epochs=run.epochs,
            pad_id=self.tokenizer.eos_id,
            seq_len=run.seq_len,
            max_steps=run.max_steps,
            packing=run.packing,
            progress=progress,
        )

    def validation(self) -> Steps:
        """The rows that are held back, once, a micro-batch a step."""
        run = self._contract.exec
        return Steps(
            HeldBack(self.split),
            self.examples,
            batch_size=run.batch_size,
            grad_accum=1,
            epochs=1,
            pad_id=self.tokenizer.eos_id,
            seq_len=run.seq_len,
        )
