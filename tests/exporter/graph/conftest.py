"""A small network, traced once."""

from __future__ import annotations

import pytest

from pcexport.config import BuildConfig
from pcexport.graph import network as network_module
from pcexport.graph.network import TracedNetwork
from pcrun.preprocess import PreprocessSpec

SIDE = 64


def traced(**keys: str) -> TracedNetwork:
    config = BuildConfig(weights="untrained", image_size=str(SIDE), **keys)
    return network_module.trace_network(config, PreprocessSpec(SIDE, SIDE, SIDE, SIDE))


@pytest.fixture(scope="module")
def network() -> TracedNetwork:
    return traced()
