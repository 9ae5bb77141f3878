"""Fixtures for the tests of ``calibration``."""

import pytest
from own_dit import OwnDiT, registration

import ditfastattn


@pytest.fixture
def own_dit_registered(registry: None) -> None:
    ditfastattn.register(OwnDiT, **registration())
