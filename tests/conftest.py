"""Options and profiles of the whole suite: `--profile quick|ci|nightly`, and which marked tests run."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

PROFILES = ("quick", "ci", "nightly")

# A machine shared with others is slow at times: time is pytest-timeout's business, never a property's.
settings.register_profile(
    "quick", derandomize=True, max_examples=20, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=100)
settings.register_profile(
    "nightly", derandomize=False, max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--profile", choices=PROFILES, default="ci", help="how much to draw; nightly draws at random and runs tests marked nightly too"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(config.getoption("--profile"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; what tests start would ignore Ctrl-C too
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects, rather than skips, what was not asked for: a skip would read as something missing."""
    left_out = {name for name, wanted in _wanted(config).items() if not wanted}
    deselected = [item for item in items if left_out & set(item.keywords)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not left_out & set(item.keywords)]


def _wanted(config: pytest.Config) -> dict[str, bool]:
    return {"nightly": config.getoption("--profile") == "nightly", "webgpu": "webgpu" in str(config.getoption("markexpr"))}
