"""docs/artifacts.md names every field, so that it can't go stale in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from contract.artifacts import manifest, merge_manifest, promotion, telemetry, training_checkpoint, v2, v3
from contract.artifacts.adapter import Quant

TEXT = (Path(__file__).parents[3] / "docs" / "artifacts.md").read_text()
MODELS = (
    v2.Meta, v3.Manifest, Quant, training_checkpoint.State, training_checkpoint.Progress, training_checkpoint.SavedAdapter,
    manifest.TrainingManifest, merge_manifest.MergeManifest, merge_manifest.MergedAdapter, merge_manifest.Changed, promotion.Binding,
    promotion.PromotionRecord, telemetry.TelemetryRow,
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_named(model: type[BaseModel]) -> None:
    assert [name for name in model.model_fields if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("model", [model for model in MODELS if "format" in model.model_fields])
def test_every_format_is_named(model: type[BaseModel]) -> None:
    assert f"`{model.model_fields['format'].annotation.__args__[0]}`" in TEXT
