"""A step of the reference against torch: autograd on a graph written plainly, torch.nn.utils.clip_grad_norm_, torch.optim.AdamW."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from contract.data.batches import PADDING
from contract.model.checkpoint import load
from contract.training.trainer import TrainerState
from contract.worker.taps import sections
from parity.checks import trajectory_case
from parity.checks.trajectory_case import StepCase
from parity.checks.trajectory_run import LLAMA
from parity.judge import perturb
from parity.reference import adamw, clip_gradients, graph_optimizer
from parity.reference.graph import Batch
from parity.reference.graph_optimizer import AdamW, Settings, clipped
from parity.reference.rounding import Exact, Noise, Size
from parity.reference.running_error import REFERENCE
from tests.parity.reference.plain_cases import Case
from tests.parity.reference.plain_graph import Plain


@pytest.fixture(scope="module")
def cases() -> list[StepCase]:
    """Steps 3 and 4 of the run: one that is not clipped, and a short one that is."""
    return list(islice(trajectory_case.cases(LLAMA, "float64"), 2, 4))


def mean_loss(plain: Plain, ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Over the labels of one sequence that count."""

    def unchanged(name: str, value: torch.Tensor) -> torch.Tensor:
        return value

    x, tables = plain.embed(ids, None, unchanged), plain.tables(ids.shape[1])
    for section in sections(plain.layout.num_hidden_layers)[1:-1]:
        x = plain.block(section, x, tables, None, unchanged)
    loss = plain.head(x, labels, unchanged)
    assert loss is not None
    return loss


def by_torch(case: StepCase) -> dict[str, np.ndarray]:
    """The step, with whole batches unpadded one by one: a loss of the sum over tokens, divided once."""
    run, own, before = case.run, case.run.contract.exec, case.before
    weights = {name: load(run.checkpoint, name).astype(np.float64) for name in run.checkpoint.placed}
    nothing = Batch(ids=np.zeros((1, 1), np.int64), labels=np.zeros((1, 1), np.int64))
    plain = Plain(Case(plan=run.plan, weights=weights, adapter=dict(before.adapter), batch=nothing))
    parameters = plain.adapter
    total = torch.zeros((), dtype=torch.float64)
    for batch in case.step.batches:
        for ids, labels, segments in zip(batch.ids_BT, batch.labels_BT, batch.segments_BT, strict=True):
            length = int((segments != PADDING).sum())
            count = int((labels[1:length] != -100).sum())
            total = total + count * mean_loss(plain, ids[None, :length], labels[None, :length])
    loss = total / case.step.tokens
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), own.max_grad_norm)
    optimizer = torch.optim.AdamW(parameters.values(), lr=case.rate, weight_decay=own.weight_decay)
    for name, parameter in parameters.items():
        moments = {"exp_avg": torch.tensor(before.m[name]), "exp_avg_sq": torch.tensor(before.v[name])}
        optimizer.state[parameter] = {"step": torch.tensor(float(before.updates)), **moments}
    optimizer.step()
    done = {"loss": loss.detach().numpy(), "grad_norm": norm.detach().numpy()}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        parts = {"adapter": parameter.detach(), "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        done |= {f"{part}.{name}": value.numpy() for part, value in parts.items()}
    return done


def test_a_step_is_torchs(cases: list[StepCase]) -> None:
    """Within the response to rounding errors, of which no share is typed: 1 in 10^9 a row, twice since both err."""
    for case in cases:
        wanted, exact, response = by_torch(case), case.exact(), case.response(1.0)
        assert set(wanted) == set(exact) == set(response.rows)
        for name, value in exact.items():
            allowed = perturb.row_limits(response.rows[name], dtype="float64", runs=response.runs, false_alarm=1e-9, sides=2)
            error = np.sqrt(np.sum(np.square(np.atleast_2d(value - wanted[name])), axis=-1)).reshape(allowed.shape)
            assert np.all(error <= allowed), name
            assert np.max(np.abs(wanted[name])) > 0


def test_clipping_and_adamw_are_the_primitives() -> None:
    """Against the same operations with hard bounds, which tier A holds the stacks to; the error of both is float64's."""
    rng = np.random.default_rng(5)
    gradients = {"a": 3 * rng.standard_normal((4, 5)), "b": rng.standard_normal(7)}
    one = REFERENCE
    for max_norm in (0.7, 1e3):
        norm, scaled = clipped({name: it[None] for name, it in gradients.items()}, max_norm, Exact())
        wanted = clip_gradients.clip_gradients(gradients, {"max_norm": max_norm}, one)
        for name, value in {"norm": norm, "a_clipped": scaled["a"], "b_clipped": scaled["b"]}.items():
            assert np.all(np.abs(value[0] - wanted[name].value) <= 2 * wanted[name].error), name
    for updates in (0, 1, 40):
        given = {name: rng.standard_normal(9) for name in ("weight", "gradient", "m")} | {"v": rng.standard_normal(9) ** 2}
        attrs = {"lr": 0.02, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
        settings = Settings(lr=0.02, max_norm=1.0, weight_decay=0.1, host_errs=True)
        stepped = AdamW(settings, updates, Exact()).step("x", *(given[name][None] for name in ("weight", "gradient", "m", "v")))
        exact = adamw.adamw_step({**given, "step": np.array(updates)}, attrs, one)
        for ours, theirs in (("adapter", "weight_next"), ("m", "m_next"), ("v", "v_next")):
            assert np.all(np.abs(stepped[ours][0] - exact[theirs].value) <= 2 * exact[theirs].error), ours


class Sites:
    """A Noise that adds nothing, and notes what it was shown."""

    ulp, mixed = 1.0, False

    def __init__(self) -> None:
        self.sizes: dict[str, np.ndarray] = {}

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        assert site not in self.sizes, "each operation is named once"
        found = size()
        self.sizes[site] = np.asarray(getattr(found, "alone", found))
        return value


def test_every_operation_errs_but_those_that_are_exact(cases: list[StepCase]) -> None:
    """Neither a clip that does not bind nor a rate of 0 rounds; constants are drawn once for both micro-batches."""
    free, bound = Sites(), Sites()
    for sites, case in zip((free, bound), cases, strict=True):
        case.compute(sites)
        for operation in ("norm/root", "clip/ratio", "adamw/second", "adamw/rate", "sum/loss", "mean/loss"):
            assert np.all(sites.sizes[operation] > 0), operation
        constants = [site for site in sites.sizes if "constant" in site]
        assert constants
        assert all(site.startswith("constant/") for site in constants)
        assert {site.partition("/")[0] for site in sites.sizes} >= {"0", "1", "norm", "clip", "adamw", "sum", "mean", "constant"}
    name = "clip/layers.0.q_proj.lora_b"
    assert not np.any(free.sizes[name])
    assert np.all(bound.sizes[name] > 0)
    still = Sites()
    matrices = [np.ones((1, 2, 2))] * 3 + [np.ones((1, 2, 2))]
    AdamW(Settings(lr=0.0, max_norm=1.0, weight_decay=0.1, host_errs=True), 0, still).step("x", *matrices)
    assert not any(np.any(still.sizes[f"adamw/{site}"]) for site in ("decay", "x/decayed", "x/update", "x/weight"))


def test_in_float32_the_hosts_own_numbers_are_exact_but_for_a_cast() -> None:
    sites: dict[bool, Sites] = {errs: Sites() for errs in (True, False)}
    for errs, noise in sites.items():
        typed: Noise = noise
        graph_optimizer.AdamW(Settings(lr=0.01, max_norm=1.0, weight_decay=0.1, host_errs=errs), 1, typed)
    assert np.all(sites[True].sizes["adamw/second"] > 1), "0.999^2 errs by an ulp, however little is left of 1 - 0.999^2"
    assert not np.any(sites[False].sizes["adamw/second"])
    assert np.all(sites[False].sizes["adamw/beta1"] > 0)
    assert not np.any(sites[True].sizes["adamw/beta1"]), "float64 holds the number that is meant"


def test_a_state_is_not_changed_by_a_step(cases: list[StepCase]) -> None:
    def bits(state: TrainerState) -> bytes:
        return b"".join(part[name].tobytes() for part in (state.adapter, state.m, state.v) for name in part)

    before = bits(cases[0].before)
    cases[0].compute()
    assert bits(cases[0].before) == before
