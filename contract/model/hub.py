"""Checkpoints of the Hugging Face hub: weights in safetensors, configuration and tokenizer, nothing else."""

from __future__ import annotations

from pathlib import Path

from contract.errors import EnvironmentUnfit, MissingError, UserError

REACH_SECONDS = 10.0
"""How long the hub may take to answer at all; snapshot_download itself waits without end."""

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt")


def fetch(name: str, *, revision: str | None = None, folder: Path | None = None, force: bool = False) -> Path:
    """Downloads a checkpoint, or finds it in the hub's own cache.

    Args:
        folder: where it goes; None is the hub's cache, which other programs share.
        force: download what is there already, too.

    Raises:
        UserError: no such checkpoint, or no access.
        MissingError: no network, and no copy here.
        EnvironmentUnfit: it can't be written.
    """
    return _snapshot(name, revision, folder, local_only=False, force=force)


def locate(name: str, *, revision: str | None = None) -> Path:
    """The checkpoint in the hub's cache.

    Raises:
        MissingError: it is not there.
    """
    return _snapshot(name, revision, None, local_only=True, force=False)


def _snapshot(name: str, revision: str | None, folder: Path | None, *, local_only: bool, force: bool) -> Path:
    import httpx2  # what huggingface_hub 2 speaks HTTP with; its errors pass through
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    command = f"finetune fetch {name}{f' --revision {revision}' if revision else ''}"
    unreachable = False
    try:
        if not local_only:
            try:
                HfApi().repo_info(name, revision=revision, timeout=REACH_SECONDS)
            except (httpx2.ConnectError, httpx2.TimeoutException, OfflineModeIsEnabled):
                unreachable = True
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_dir=folder,
                allow_patterns=list(PATTERNS),
                local_files_only=local_only or unreachable,
                force_download=force,
            )
        )
    except HFValidationError:
        raise UserError(f"{name!r} is no hub id; give OWNER/NAME, such as HuggingFaceTB/SmolLM2-135M-Instruct") from None
    except GatedRepoError:
        raise UserError(f"{at} asks for its licence to be accepted: do so on its hub page, run `hf auth login`, then {command}") from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r}; give a branch, tag or commit of it") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no {name}, or it is private; check the spelling, or run: hf auth login") from None
    except LocalEntryNotFoundError:
        if not unreachable:
            raise MissingError(f"{at} is not here; run: {command}") from None
        raise MissingError(
            f"{at} is not in the hub's cache, and the hub can't be reached; run `{command}` where there is a network"
        ) from None
    except httpx2.HTTPError as error:
        raise UserError(f"the hub did not give {at} ({_first_line(error)}); try again: {command}") from None
    except OSError as error:
        raise EnvironmentUnfit(
            f"can't write {at} ({_first_line(error)}); free space, or give another folder: {command} --folder DIR"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
