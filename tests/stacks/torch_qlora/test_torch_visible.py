"""Who sees whom, against the rule spelled out token by token; and what fused attention keeps for the backward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.data.batches import PADDING
from stacks.torch_qlora.graph import Graph, GraphBatch
from stacks.torch_qlora.visible import Visible
from tests.stacks.torch_qlora.tiny_architectures import LAYOUTS, ONE_EACH, plan
from tests.stacks.torch_qlora.tiny_torch_graph import weights

CPU = torch.device("cpu")
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, PADDING], [PADDING, PADDING, 3, 3, 3, 3, 3, 3], [0] * 8])
B, T = SEGMENTS.shape


def by_hand(sees: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(~sees)


@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_a_token_sees_its_segment_up_to_itself_within_the_window(window: int | None) -> None:
    visible = Visible(T, CPU, segments_BT=SEGMENTS)
    sees = np.zeros((B, 1, T, T), bool)
    for b, t, s in np.ndindex(B, T, T):
        same = SEGMENTS[b, t] == SEGMENTS[b, s] != PADDING
        sees[b, 0, t, s] = same and s <= t and (window is None or t - s < window)
    assert torch.equal(visible.hidden(window), by_hand(sees))
    assert visible.blind_B1T1 is not None
    assert torch.equal(visible.blind_B1T1[:, 0, :, 0], torch.from_numpy(~sees[:, 0].any(-1)))
    mask = visible.mask(window, torch.float64)
    assert mask is not None
    assert torch.equal(mask == 0, torch.from_numpy(sees | ~sees.any(-1, keepdims=True)))
    assert set(mask[mask != 0].tolist()) == {-torch.inf}
    assert visible.mask(window, torch.float64) is mask


@pytest.mark.parametrize("window", [None, 2, 3])
def test_a_new_token_sees_what_a_cache_holds(window: int | None) -> None:
    """Two sequences, one of them padded on the left; two new tokens each."""
    positions, segments = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]), torch.tensor([[0] * 6, [PADDING, PADDING, 0, 0, 0, 0]])
    visible = Visible(2, CPU, segments_BT=segments[:, 4:], positions_BT=positions[:, 4:], keys=(positions, segments))
    sees = np.zeros((2, 1, 2, 6), bool)
    for b, t, s in np.ndindex(2, 2, 6):
        ahead = int(positions[b, 4 + t] - positions[b, s])
        sees[b, 0, t, s] = segments[b, s] == 0 and ahead >= 0 and (window is None or ahead < window)
    assert torch.equal(visible.hidden(window), by_hand(sees))
    assert visible.mask(window, torch.float32) is not None


def test_a_whole_sequence_needs_no_mask() -> None:
    whole = Visible(T, CPU)
    assert whole.mask(None, torch.float32) is None
    assert whole.mask(T, torch.float32) is None
    assert whole.mask(T - 1, torch.float32) is not None
    assert whole.blind_B1T1 is None
    assert Visible(T, CPU, segments_BT=SEGMENTS[2:]).blind_B1T1 is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ONE_EACH)
def test_fused_attention_keeps_nothing_of_every_pair_of_tokens(name: str, packed: bool) -> None:
    """What autograd keeps that grows with the square of the tokens is the one mask of each window, shared by heads and layers."""
    tokens, layout = 90, LAYOUTS[name].model_copy(update={"max_position_embeddings": 100})
    ids = torch.randint(0, layout.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))
    segments = torch.arange(tokens).expand(2, -1) // 40 if packed else None
    batch = GraphBatch(ids_BT=ids, labels_BT=ids, segments_BT=segments)
    kept: dict[str, set[int]] = {}
    for path in ("plain", "fused_attention"):
        wanted = plan(name, layout=layout, paths=() if path == "plain" else (path,))
        held, found = Graph(wanted, weights(wanted), weights(wanted), CPU), kept.setdefault(path, set())

        def keep(tensor: torch.Tensor, found: set[int] = found) -> torch.Tensor:
            if tensor.numel() >= tokens * tokens and tensor.shape[-1] == tokens:
                found.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held.loss_sum(batch).backward()  # type: ignore[no-untyped-call]
    windows = {layout.window(layer) for layer in range(layout.num_hidden_layers)}
    assert len(kept["fused_attention"]) == len(windows if packed else windows - {None})
    assert len(kept["plain"]) >= layout.num_hidden_layers
