"""Training against the outside: five steps of transformers' LlamaForCausalLM with peft on it, torch.optim.AdamW, clip_grad_norm_ and
get_cosine_schedule_with_warmup, in the loop that their users write.

Two micro-batches a step have unequal numbers of supervised tokens, the clip binds, the decay and a warm-up are on. How far two right
answers may lie apart is measured, as transformers_witness.py says: each one's float32 against its own float64. The five steps are
smooth in the weights (no gradient here is so small beside AdamW's eps that its sign turns), so a rounding of 2^-53 makes of them
2^-29 of what one of 2^-24 makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from contract.data.steps import Step
from contract.model import keymap
from contract.training.inputs import Run
from tests.contract.model import tiny_checkpoint
from tests.float64_transformers import clean
from tests.stacks.torch_qlora.tiny_torch_run import VOCABULARY, run_in, trainer_of
from tests.stacks.torch_qlora.transformers_witness import MARGIN, UNIT_RATIO

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Course = dict[str, np.ndarray]
"""`loss` and `grad_norm` [STEPS], and the adapter after the last step by the contract's names."""

STEPS = 5
SETTINGS: dict[str, Any] = {"max_grad_norm": 0.5, "weight_decay": 0.1, "warmup_steps": 2, "learning_rate": 0.02, "batch_size": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    run_in(folder)
    # transformers reads no config.json whose hidden_size is no multiple of the heads
    weights = tiny_checkpoint.squared(tiny_checkpoint.weights(vocab_size=VOCABULARY))
    tiny_checkpoint.write(folder / "model", weights, vocab_size=VOCABULARY, **tiny_checkpoint.SQUARE)
    return run_in(folder, exec=SETTINGS)


def steps_of(run: Run) -> list[Step]:
    found = [step for step, _ in zip(run.steps.steps(), range(STEPS), strict=False)]
    assert all(len({batch.tokens for batch in step.batches}) == len(step.batches) == 2 for step in found)
    return found


def own(run: Run, dtype: str) -> Course:
    trainer = trainer_of(run, dtype=dtype)
    done = [trainer.step(step, float(run.learning_rates[step.number])) for step in steps_of(run)]
    series = {"loss": np.array([one.loss for one in done]), "grad_norm": np.array([one.grad_norm for one in done])}
    return series | {name: parameter.detach().double().numpy() for name, parameter in trainer._parameters.items()}


def peft_model(run: Run, dtype: torch.dtype) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """transformers' own loading of the base with the run's adapter on it, and peft's parameters by the contract's names."""
    model = AutoModelForCausalLM.from_pretrained(run.checkpoint.path, dtype=dtype)
    # the patterns of tiny_torch_run.py, by transformers' names; peft ends a pattern's name at a dot
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=list(run.layout.linears), rank_pattern={"k_proj": 2, "layers.1.self_attn.q_proj": 5}
    )
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    named = dict(model.named_parameters())
    start = {name: parameter.detach() for name, parameter in trainer_of(run)._parameters.items()}
    found = {}
    for name, matrix in start.items():
        path, _, half = name.rpartition(".lora_")
        key = keymap.hugging_face_key(path).removesuffix(".weight")
        found[name] = named[f"base_model.model.{key}.lora_{half.upper()}.default.weight"]
        assert found[name].shape == matrix.shape
        found[name].data = matrix.to(dtype, copy=True)
    assert sum(parameter.requires_grad for parameter in named.values()) == len(found)
    return model.train(), found


def theirs(run: Run, dtype: str, *, by_batch: bool = False) -> Course:
    """Accumulated over a step's tokens; by_batch: each micro-batch by its own, as a loop that is wrong does."""
    model, parameters = peft_model(run, getattr(torch, dtype))
    optimizer = torch.optim.AdamW(parameters.values(), lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, SETTINGS["warmup_steps"], run.steps.total)
    losses, norms = [], []
    for step in steps_of(run):
        total = 0.0
        for batch in step.batches:
            ids_BT, labels_BT = torch.from_numpy(batch.ids_BT), torch.from_numpy(batch.labels_BT)
            logits_BTV = model(input_ids=ids_BT, attention_mask=torch.from_numpy(batch.attention_BT), use_cache=False).logits
            # transformers' loss casts the logits to float32
            rows_RV, next_R = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(rows_RV, next_R, reduction="sum")
            (loss / (len(step.batches) * batch.tokens if by_batch else step.tokens)).backward()
            total += float(loss.detach())
        losses.append(total / step.tokens)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), SETTINGS["max_grad_norm"])))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    series = {"loss": np.array(losses), "grad_norm": np.array(norms)}
    return series | {name: parameter.detach().double().numpy() for name, parameter in parameters.items()}


def far(one: Course, other: Course) -> dict[str, float]:
    """The largest distance in each array, relative to its largest value."""
    assert one.keys() == other.keys()
    return {name: float(np.abs(value - other[name]).max() / np.abs(other[name]).max()) for name, value in one.items()}


def test_five_steps_are_those_of_transformers_peft_and_torchs_optimizer(run: Run) -> None:
    with clean():
        ours, peers = ({dtype: course(run, dtype) for dtype in ("float32", "float64")} for course in (own, theirs))
        wrong = theirs(run, "float64", by_batch=True)
    assert all(norm > SETTINGS["max_grad_norm"] for norm in ours["float64"]["grad_norm"])
    rounded = max(max(far(found["float32"], found["float64"]).values()) for found in (ours, peers))
    for dtype, unit in (("float32", 1.0), ("float64", UNIT_RATIO)):
        distances = far(ours[dtype], peers[dtype])
        assert max(distances.values()) <= MARGIN * unit * rounded, (dtype, distances)
    assert min(size for name, size in far(wrong, peers["float64"]).items() if "lora" in name) > 1e5 * MARGIN * UNIT_RATIO * rounded
