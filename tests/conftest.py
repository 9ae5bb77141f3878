"""Markers and fixtures for every test."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import DiTPipeline
from small_models import small_pipeline

from ditfastattn.models import REGISTRY

# Models this small only lose time to a second thread.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def pipe() -> DiTPipeline:
    return small_pipeline()


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is forgotten."""
    before = dict(REGISTRY._added)
    yield
    REGISTRY._added.clear()
    REGISTRY._added.update(before)
