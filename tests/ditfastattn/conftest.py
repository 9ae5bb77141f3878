"""Fixtures for the tests of ``ditfastattn``."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from readme_program import programs
from small_latte import small_latte_pipeline
from small_models import small_pipeline
from torch._dynamo.utils import counters


@pytest.fixture
def mine(registry: None) -> dict[str, Any]:
    """The README's program after it ran."""
    names: dict[str, Any] = {"__name__": "readme"}
    torch.manual_seed(0)
    exec(programs()[0], names)
    return names


@pytest.fixture
def latte() -> Any:
    return small_latte_pipeline()


@pytest.fixture
def graph_breaks_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its code generation, which would take minutes: what is traced, and how often, is real."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def gpu_pipe() -> DiTPipeline:
    return small_pipeline().to("cuda")
