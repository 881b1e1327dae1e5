"""What is set before CUDA is first used; that it makes runs repeat themselves needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from contract.worker.stack import NotSupported
from stacks.torch_qlora import cuda
from stacks.torch_qlora.models.attention import for_each_head


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's settings and the variable are those of the whole process."""
    monkeypatch.setenv(cuda.WORKSPACE, "")
    monkeypatch.delenv(cuda.WORKSPACE)
    matmul = torch.backends.cuda.matmul
    narrow = matmul.allow_bf16_reduced_precision_reduction
    yield
    torch.use_deterministic_algorithms(False)
    matmul.allow_bf16_reduced_precision_reduction = narrow


@pytest.mark.parametrize("given", [None, ":4096:8", ":16:8"])
def test_every_sum_has_one_order(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of attention too, whose kernels heed no warning: warn_only is off."""
    if given is not None:
        monkeypatch.setenv(cuda.WORKSPACE, given)
    cuda.start(torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert os.environ[cuda.WORKSPACE] == (given or ":4096:8")


def test_a_workspace_that_changes_the_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.WORKSPACE, ":0:0")
    with pytest.raises(NotSupported, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0', .* allowed: :4096:8 or :16:8; unset it"):
        cuda.start(torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cpu_is_left_alone() -> None:
    cuda.start(torch.device("cpu"))
    assert cuda.WORKSPACE not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_head_has_the_keys_of_its_group() -> None:
    keys = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    copied = for_each_head(keys, 6)
    assert copied.shape == (2, 6, 4, 5)
    for head in range(6):
        assert torch.equal(copied[:, head], keys[:, head // 2])
    assert for_each_head(keys, 3) is keys
