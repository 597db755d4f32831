"""What a detector runs with: asked for, else the device profile's, else a good start."""

import dataclasses
import warnings
from typing import Any

import pytest

from pcrun.bundle.bundle import Bundle
from pcrun.errors import BackendError
from pcrun.machine.threads import available_cores
from pcrun.search import SEARCH_NAMES
from pcrun.tuning import settings as choosing
from pcrun.tuning.profile import DeviceProfile, ProfileKey, RunSettings, save_profile
from pcrun.tuning.settings import choose_settings, default_search, possible_searches
from tests.conftest import BundleMaker

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import BANK_ROWS, DEFAULT_DIM, EF  # noqa: E402

PROFILE = RunSettings("cpu", "fp32", "hnsw", 2, 3, 1, spinning=False)


@pytest.fixture
def bundle(made_bundle: BundleMaker) -> Bundle:
    return Bundle.load(made_bundle())


@pytest.fixture
def profile(bundle: Bundle) -> DeviceProfile:
    made = DeviceProfile(ProfileKey.here(bundle, provider="auto"), PROFILE, 1.0, 2.0, 40, "images", ())
    save_profile(made)
    return made


def chosen(bundle: Bundle, **options: Any) -> tuple[RunSettings, DeviceProfile | None]:
    left_open = {
        "provider": "auto", "precision": None, "threads": 0, "exactness": "mask", "search": "auto",
        "ef": None, "use_profile": True,
    }  # fmt: skip
    return choose_settings(bundle, **(left_open | options))


class TestGoodStart:
    def test_all_cores_and_the_bundles_precision(self, bundle: Bundle) -> None:
        settings, used = chosen(bundle, provider="cpu")
        assert used is None
        assert (settings.provider, settings.precision) == ("cpu", bundle.manifest.embedding.precision)
        assert settings.threads == settings.search_threads == available_cores()

    def test_a_small_bank_is_searched_by_8_bit_products(self, bundle: Bundle) -> None:
        assert chosen(bundle)[0].search == "quantised" and chosen(bundle)[0].ef is None

    def test_a_large_bank_by_its_index(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", BANK_ROWS * DEFAULT_DIM)
        assert default_search(bundle, provider="cpu") == "quantised"
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", BANK_ROWS * DEFAULT_DIM - 1)
        assert default_search(bundle, provider="cpu") == "hnsw"
        assert chosen(bundle)[0].ef == bundle.manifest.search.ef == EF

    def test_the_size_is_that_of_the_dimensions_of_search(
        self, made_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reduced = Bundle.load(made_bundle(search_dim=3))
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", BANK_ROWS * 3)
        assert default_search(reduced, provider="cpu") == "quantised"
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", BANK_ROWS * 3 - 1)
        assert default_search(reduced, provider="cpu") == "hnsw"

    def test_a_large_bank_without_an_index_by_8_bit_products(
        self, made_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert default_search(Bundle.load(made_bundle(with_index=False)), provider="cpu") == "quantised"

    def test_a_large_bank_without_hnswlib_warns(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choosing, "_QUANTISED_BYTES", 1)
        monkeypatch.setattr(choosing, "hnswlib_problem", lambda: "hnswlib cannot be imported (gone)")
        with pytest.warns(UserWarning, match=r"hnswlib cannot be imported.*another search .*same verdicts"):
            assert default_search(bundle, provider="cpu") == "quantised"

    def test_rows_too_long_for_8_bits_are_searched_exactly(
        self, made_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choosing, "quantised_problem", lambda rows: "too long")
        assert default_search(Bundle.load(made_bundle(with_index=False)), provider="cpu") == "exact"
        assert default_search(Bundle.load(made_bundle()), provider="cpu") == "hnsw"

    @pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
    def test_a_gpu_searches_exactly(self, bundle: Bundle, provider: str) -> None:
        assert default_search(bundle, provider=provider) == "exact_graph"


class TestPossibleSearches:
    def test_all_of_them_here(self, bundle: Bundle) -> None:
        assert possible_searches(bundle) == list(SEARCH_NAMES)

    def test_without_an_index_no_hnsw(self, made_bundle: BundleMaker) -> None:
        assert "hnsw" not in possible_searches(Bundle.load(made_bundle(with_index=False)))

    def test_exact_search_always(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choosing, "quantised_problem", lambda rows: "no")
        monkeypatch.setattr(choosing, "hnswlib_problem", lambda: "no")
        assert possible_searches(bundle) == ["exact", "exact_graph"]


class TestAskedFor:
    @pytest.mark.parametrize("search", SEARCH_NAMES)
    def test_every_engine_can_be_named(self, bundle: Bundle, search: str) -> None:
        settings, _ = chosen(bundle, search=search)
        assert settings.search == search
        assert settings.ef == (EF if search == "hnsw" else None)

    def test_ef_of_the_index_asks_for_the_index(self, bundle: Bundle) -> None:
        for search in ("auto", "hnsw"):
            settings, _ = chosen(bundle, search=search, ef=3)
            assert (settings.search, settings.ef) == ("hnsw", 3)

    def test_threads_are_those_of_search_too(self, bundle: Bundle) -> None:
        settings, _ = chosen(bundle, threads=5)
        assert (settings.threads, settings.search_threads) == (5, 5)

    def test_full_needs_an_exact_engine(self, bundle: Bundle) -> None:
        assert chosen(bundle, exactness="full")[0].search == "exact"
        assert chosen(bundle, exactness="full", search="exact_graph")[0].search == "exact_graph"

    @pytest.mark.parametrize(
        "options, error, words",
        [
            ({"search": "annoy"}, ValueError, r"search must be auto or one of quantised, .*got 'annoy'"),
            ({"ef": 0}, ValueError, "ef must be at least 1, got 0"),
            (
                {"ef": 4, "search": "exact"},
                ValueError,
                "ef is the search width of 'hnsw', got search 'exact'",
            ),
            ({"ef": 4, "exactness": "full"}, ValueError, "'full' needs an exact search, got search 'hnsw'"),
            ({"search": "quantised", "exactness": "full"}, ValueError, "'full' needs an exact search"),
            ({"threads": -1}, ValueError, r"threads must be 0 .*got -1"),
            ({"provider": "tpu"}, BackendError, "Unknown provider 'tpu'"),
        ],
    )
    def test_what_there_is_not_is_refused(
        self, bundle: Bundle, options: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            chosen(bundle, **options)


class TestProfile:
    def test_it_goes_before_the_good_start(self, bundle: Bundle, profile: DeviceProfile) -> None:
        assert chosen(bundle) == (PROFILE, profile)

    def test_it_can_be_ignored(self, bundle: Bundle, profile: DeviceProfile) -> None:
        settings, used = chosen(bundle, use_profile=False)
        assert used is None and settings.search == "quantised" and settings.spinning

    def test_it_is_of_one_request(self, bundle: Bundle, profile: DeviceProfile) -> None:
        assert chosen(bundle, provider="cpu")[1] is None

    @pytest.mark.parametrize(
        "options, changes",
        [
            ({"search": "quantised"}, {"search": "quantised", "ef": None}),
            ({"search": "hnsw"}, {}),
            ({"ef": 7}, {"ef": 7}),
            ({"threads": 2}, {"threads": 2, "search_threads": 2}),
            ({"exactness": "full"}, {"search": "exact", "ef": None}),
            ({"exactness": "none"}, {}),
        ],
    )
    def test_what_is_asked_for_goes_before_it(
        self, bundle: Bundle, profile: DeviceProfile, options: dict[str, Any], changes: dict[str, Any]
    ) -> None:
        settings, used = chosen(bundle, **options)
        assert settings == dataclasses.replace(PROFILE, **changes)
        # The rest is still the profile's.
        assert used == profile
