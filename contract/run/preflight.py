"""All that can be checked of a run on its files alone: model, tokenizer, rows; no stack is asked, and none has to be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contract.data import census
from contract.data.census import Census
from contract.data.index import RowIndex
from contract.data.tokenizers import HfTokenizer, Tokenizer
from contract.data.train_rows import TrainRows
from contract.data.vox import VoxTokenizer
from contract.errors import ContractError, ContractErrors
from contract.model import checkpoint, fit, shards
from contract.model.checkpoint import Checkpoint
from contract.model.preflight import Inspected
from contract.run.facts import Refusal
from contract.run.gates import FILE_GATES
from contract.run.spec import FineTuneContract
from contract.run.survey import Options, Survey, refusals_of, survey
from contract.worker import files

Progress = Callable[[int, int], None]


class FileReport(BaseModel):
    """What the files hold; nothing of it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_type: str
    parameters: int
    weight_bytes: int
    shards: int
    dtypes: tuple[str, ...]
    scanned: bool
    vocab_size: int
    tokenizer_ids: int
    rows: int
    rows_kept: int
    rows_left_out: dict[str, int]
    labels: Census | None
    notes: tuple[str, ...]


def preflight(
    contract: FineTuneContract,
    *,
    scan: bool = False,
    labels: bool = False,
    options: Options,
    scanned: Progress = lambda done, total: None,
    labelled: Progress = lambda done, total: None,
) -> FileReport | tuple[Refusal, ...]:
    """Checks every file of a run.

    Args:
        scan: read every weight too, for NaN and infinity.
        labels: make every row into ids and labels too, and count.
        scanned, labelled: told bytes of weights, and rows, done and in all.

    Raises:
        EnvironmentUnfit: the cache folder can't be written.
    """
    found = survey(contract, {}, options)
    facts = found.facts
    refused = [*found.faults, *(refusal for gate in FILE_GATES if (refusal := gate(facts)) is not None)]
    tokenizer: Tokenizer | None = None
    try:
        tokenizer = _tokenizer(contract, None if found.files is None else found.files.tokenizer_json)
    except ContractError as error:
        refused += refusals_of("tokenizer", error)
    if isinstance(tokenizer, HfTokenizer) and facts.layout is not None and tokenizer.vocab_size > facts.layout.vocab_size:
        refused.append(_too_many_ids(tokenizer.vocab_size, facts.layout.vocab_size))
    if scan and facts.inspected is not None:
        size = facts.inspected.nbytes
        try:
            checkpoint.require_finite(placed_files(facts.inspected), lambda done, total: scanned(size * done // total, size))
        except (ContractError, ContractErrors) as error:
            refused += refusals_of("weights", error)
    counted = None
    if labels and not refused:
        try:
            counted, too_many = _census(contract, found, options, labelled)
            refused += too_many
        except (ContractError, ContractErrors) as error:
            refused += refusals_of("labels", error)
    if refused:
        # One file may be read for two reasons, and says the same thing both times.
        return tuple({(refusal.got, refusal.allowed): refusal for refusal in reversed(refused)}.values())[::-1]
    assert facts.inspected is not None
    assert tokenizer is not None
    assert found.index is not None
    return _report(facts.inspected, tokenizer, found.index, counted, scan=scan)


def _census(contract: FineTuneContract, found: Survey, options: Options, progress: Progress) -> tuple[Census, tuple[Refusal, ...]]:
    rows = TrainRows(contract, tokenizer_json=None if found.files is None else found.files.tokenizer_json, cache=options.cache)
    counted = census.take(rows, progress)
    if counted.skip_rate <= contract.exec.max_skip_rate:
        return counted, ()
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted.skipped.items())
    first = f"the first in line {counted.first_skipped}"
    refusal = Refusal(
        gate="skip_rate",
        got=f"{counted.skip_rate:.1%} of {counted.rows:,} rows without a token to learn ({reasons}; {first})",
        allowed=f"exec.max_skip_rate {contract.exec.max_skip_rate:.1%} at most",
        remedy="raise exec.seq_len, mend the rows, or raise exec.max_skip_rate",
    )
    return counted, (refusal,)


def _tokenizer(contract: FineTuneContract, tokenizer_json: Path | None) -> Tokenizer | None:
    """None where its file is missing, which a gate says."""
    if contract.data.tokenizer_mode == "vox":
        return VoxTokenizer()
    if tokenizer_json is None:
        return None
    tokenizer = HfTokenizer(tokenizer_json)
    if contract.data.template == "tokenizer":
        from contract.data.template import ChatTemplate
        from contract.data.tokenizer_config import read_tokenizer_config

        config = read_tokenizer_config(tokenizer_json)
        if config.template is not None:  # that there is none is a gate's to say
            ChatTemplate(config, special_tokens=tokenizer.special_tokens)
    return tokenizer


def _too_many_ids(ids: int, vocab_size: int) -> Refusal:
    return Refusal(
        gate="tokenizer_ids",
        got=f"a tokenizer with ids 0 to {ids - 1:,}, and a model of vocab_size {vocab_size:,}",
        allowed="a vocab_size that has an embedding for each id",
        remedy="take the tokenizer.json that belongs to the model",
    )


def placed_files(inspected: Inspected) -> Checkpoint:
    """The model's files as a checkpoint, whatever of its weights they hold."""
    paths = inspected.files.shards
    identities = {path: files.identity(path) for path in paths}
    found = fit.fit(inspected.layout, shards.read(paths, inspected.files.index))
    path = inspected.files.config_json
    return Checkpoint(name=path.parent.name, path=path.parent, layout=inspected.layout, placed=found.placed, identities=identities)


def _report(model: Inspected, tokenizer: Tokenizer, index: RowIndex, counted: Census | None, *, scan: bool) -> FileReport:
    noted = tuple(f"{count:,} rows: {note}" for note, count in index.noted.items())
    bad = tuple(f"line {line}: {fault}" for line, fault in index.bad)
    return FileReport(
        model_type=model.layout.model_type,
        parameters=model.parameters,
        weight_bytes=model.nbytes,
        shards=len(model.files.shards),
        dtypes=model.dtypes,
        scanned=scan,
        vocab_size=model.layout.vocab_size,
        tokenizer_ids=tokenizer.vocab_size,
        rows=index.total,
        rows_kept=index.kept,
        rows_left_out=dict(index.left_out),
        labels=counted,
        notes=model.layout.notes + noted + bad,
    )
