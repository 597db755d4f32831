"""Committed bundles of every schema load forever, and their generator can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcrun import Bundle
from pcrun.bundle.manifest import MANIFEST_NAME, SEARCH_BASIS_NAME
from pcrun.search import SEARCH_NAMES
from pcrun.selftest import run_selftest
from tests.contract.damage import FULL, files_of
from tests.contract.detectors import load

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import (  # noqa: E402
    SCHEMA1_FIXTURE,
    SCHEMA2_FIXTURE,
    SCHEMA3_ARGUMENTS,
    SCHEMA3_FIXTURE,
    make_tiny_bundle,
)

DIGESTS = {
    SCHEMA1_FIXTURE: "92d953236e77f969afe8cf46901bbb841eca9e46f7c06c1d0378004c16f70cbe",
    SCHEMA2_FIXTURE: "3e0493ec26d9870229d1e6cd37bccdea32d4c808124ef310afe76c5da4c02e82",
}
FIXTURES = (SCHEMA1_FIXTURE, SCHEMA2_FIXTURE, SCHEMA3_FIXTURE)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("search", ["auto", *SEARCH_NAMES])
def test_fixtures_load_forever_and_run_with_every_engine(fixture: Path, search: str) -> None:
    bundle = Bundle.load(fixture)
    assert bundle.manifest.scoring.image_score == "reweighted"
    report = run_selftest(load(bundle, search=search))
    assert [check.sample.label for check in report.checks] == ["normal", "defective"]
    assert [check.is_anomalous for check in report.checks] == [False, True]
    assert report.passed, report


@pytest.mark.parametrize("fixture", DIGESTS, ids=lambda path: path.stem)
def test_the_fixtures_of_earlier_schemas_are_what_they_were(fixture: Path) -> None:
    """Every byte: the manifest holds the hashes of all other files."""
    bundle = Bundle.load(fixture)
    assert bundle.digest == DIGESTS[fixture]
    assert bundle.manifest.schema_version == FIXTURES.index(fixture) + 1
    assert set(files_of(fixture)) == {*bundle.manifest.files, MANIFEST_NAME, "manifest.sha256"}


def test_the_schema_1_fixture_has_no_basis() -> None:
    bundle = Bundle.load(SCHEMA1_FIXTURE)
    assert bundle.search_basis is None and bundle.manifest.search.dim is None


def test_the_schema_1_fixture_has_no_key_of_a_later_schema() -> None:
    raw = json.loads((SCHEMA1_FIXTURE / MANIFEST_NAME).read_bytes())
    assert raw["schema_version"] == 1
    assert not {"dim", "basis_dim"} & raw["search"].keys()
    assert not {"projected_from", "provider"} & raw["embedding"].keys()
    assert "precision" not in raw and "mean_distance_error" not in raw["search"]["measured"][0]


def test_the_schema_2_fixture_searches_in_fewer_dimensions() -> None:
    bundle = Bundle.load(SCHEMA2_FIXTURE)
    assert bundle.manifest.schema_version == 2
    assert bundle.search_basis is not None and bundle.search_basis.search.shape == (8, 3)
    assert SEARCH_BASIS_NAME in bundle.manifest.files
    # What the rows lose by it is not nothing.
    seen = (bundle.memory_bank - bundle.memory_bank.mean(axis=0)) @ bundle.search_basis.search
    assert 0.5 < seen.var(axis=0).sum() / bundle.memory_bank.var(axis=0).sum() < 0.999


def test_the_schema_2_fixture_has_no_key_of_a_later_schema() -> None:
    raw = json.loads((SCHEMA2_FIXTURE / MANIFEST_NAME).read_bytes())
    assert not {"calibrated_on", "history", "baseline"} & raw["scoring"].keys()


def test_the_schema_3_fixture_remembers_its_earlier_thresholds() -> None:
    scoring = Bundle.load(SCHEMA3_FIXTURE).manifest.scoring
    assert scoring.calibrated_on is not None and scoring.threshold is not None
    (past,) = scoring.history
    assert past.calibrated_on is None and past.threshold is not None
    assert past.threshold.value == 2 * scoring.threshold.value


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_only_the_schema_3_fixture_has_a_baseline(fixture: Path) -> None:
    baseline = Bundle.load(fixture).manifest.scoring.baseline
    assert (baseline is not None) == (fixture == SCHEMA3_FIXTURE)


def test_the_schema_3_fixture_is_what_the_generator_writes(tmp_path: Path) -> None:
    """Its numbers, that is: the last digits are those of the machine that wrote it."""
    made = make_tiny_bundle(tmp_path / "again", **SCHEMA3_ARGUMENTS)
    fixture = Bundle.load(SCHEMA3_FIXTURE)
    assert fixture.manifest.files.keys() == made.files.keys()
    assert fixture.manifest.memory_bank == made.memory_bank and fixture.manifest.search == made.search
    assert np.allclose(fixture.memory_bank, Bundle.load(tmp_path / "again").memory_bank, atol=1e-5)


def test_the_generator_is_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_tiny_bundle(tmp_path / name, **FULL)
    assert Bundle.load(tmp_path / "a").digest == Bundle.load(tmp_path / "b").digest
