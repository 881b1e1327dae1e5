"""The tiny model of tiny_llama.py, made once a session."""

from __future__ import annotations

import pytest

from tests.contract.model.tiny_llama import Tiny, make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("gguf"), tmp_path_factory.mktemp("index"))
