"""Where a checkpoint's folder lies, by what a user calls it."""

from __future__ import annotations

from pathlib import Path

from contract.errors import ContractError, EnvironmentUnfit, MissingError, UserError, brief
from contract.model import hub, zoo

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def locate(name_or_folder: str, *, place: str = "model") -> Path:
    """The folder of a known model, of a folder that exists, or of a hub id (OWNER/NAME) that was fetched.

    A known model is held against its manifest by its files' sizes; nothing is hashed.

    Args:
        place: the field that said so, for messages.

    Raises:
        MissingError: a known name or hub id that was not fetched.
        EnvironmentUnfit: the hub's cache can't be read.
        ContractError: nothing of that name, or a known model that is damaged.
    """
    try:
        if name_or_folder in zoo.KNOWN:
            return _known(name_or_folder, place)
        folder = Path(name_or_folder).expanduser()
        if folder.is_dir():
            return folder
        if zoo.is_hub_id(name_or_folder) and not name_or_folder.startswith((".", "/", "~")):
            return _fetched(name_or_folder, place)
    except (OSError, RuntimeError) as error:  # expanduser: no such user
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)  # an OSError's text has the whole name in it
        raise ContractError(place, got=f"{brief(name_or_folder)} ({why})", allowed="a folder", remedy="give another one") from None
    raise ContractError(
        place,
        got=f"{brief(name_or_folder)}, which is no model and no folder",
        allowed=f"{', '.join(zoo.KNOWN)}, a folder with {CONFIG}, or a hub id (OWNER/NAME)",
        remedy="correct it",
    )


def _known(name: str, place: str) -> Path:
    try:
        return zoo.locate(name).path
    except MissingError:
        raise
    except UserError as error:
        raise ContractError(place, got=str(error), allowed="a whole model", remedy=f"run: finetune fetch {name} --force") from None


def _fetched(name: str, place: str) -> Path:
    try:
        return hub.locate(name)
    except (EnvironmentUnfit, MissingError):
        raise
    except UserError as error:
        raise ContractError(place, got=str(error), allowed="a hub id (OWNER/NAME)", remedy="correct it") from None
