"""Mappings become dataclasses or an error that names the key."""

import json
import math
import string
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.bundle.manifest import (
    CoresetSpec,
    EmbeddingSpec,
    FileEntry,
    IndexSpec,
    Manifest,
    MemoryBankSpec,
    ParitySpec,
    ScoringSpec,
    SearchMeasurement,
    SearchSpec,
    SourceSpec,
    ThresholdSpec,
    manifest_to_json,
    parse_manifest,
)
from pcrun.errors import BundleError
from pcrun.preprocess import PreprocessSpec
from pcrun.records import RecordError, from_mapping, nearest_name, to_jsonable


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    share: float
    flag: bool
    inner: Inner
    maybe: int | None = None
    inners: tuple[Inner, ...] = ()
    numbers: tuple[float, ...] = (1.0, 2.0)
    table: dict[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")


def outer(**changes: Any) -> dict[str, Any]:
    return {"name": "n", "count": 1, "share": 0.5, "flag": True, "inner": {"size": 3}} | changes


def manifest() -> Manifest:
    threshold = ThresholdSpec(5.25, "holdout", 40, 40, 0.025, 1 / 41, 0.0722)
    names = ("embedder.onnx", "memory_bank.npy", "memory_bank.hnsw", "neighbours.npy")
    return Manifest(
        name="Flasche – 0,5 l",
        files={name: FileEntry(f"{i:064x}", 10 * i) for i, name in enumerate(names)},
        created_by={"pcexport": "0.1.0", "torch": "2.9.0"},
        source=SourceSpec("bottle", "mvtec", 160, 40, 1, "ab" * 32, {"seed": 3, "names": ["a"], "x": None}),
        preprocess=PreprocessSpec(256, 256, 224, 224, keep_aspect=True, white_level_16bit=4095),
        embedding=EmbeddingSpec(
            "resnet18", ("layer2", "layer3"), "torchvision", None, "locally_aware", 3, 28, 28, 384, 1,
            "fp32", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 17,
        ),
        memory_bank=MemoryBankSpec(5000, 384, CoresetSpec("greedy", 9000, 64, 0, 1.2), IndexSpec(16, 200, 1)),
        search=SearchSpec(64, (SearchMeasurement(16, 0.9, 0.01), SearchMeasurement(64, 0.999, 0.0)), 20),
        scoring=ScoringSpec("reweighted", 9, 4.0, threshold, None),
        parity=ParitySpec(8, 1e-4, 1e-6, 1e-3),
    )  # fmt: skip


def edited(path: str, value: Any) -> bytes:
    """The manifest with one value replaced, as JSON."""
    raw = to_jsonable(manifest())
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(raw).encode()


class TestRoundTrip:
    def test_manifest_survives_json(self) -> None:
        assert parse_manifest(manifest_to_json(manifest())) == manifest()

    def test_what_schema_2_added_may_be_left_out(self) -> None:
        raw = json.loads(manifest_to_json(manifest()))
        for keys in (("search", "dim"), ("embedding", "projected_from"), ("precision",)):
            *parents, last = keys
            place = raw
            for key in parents:
                place = place[key]
            assert place.pop(last) is None
        for measurement in raw["search"]["measured"]:
            assert measurement.pop("mean_distance_error") is None
        assert parse_manifest(json.dumps(raw).encode()) == manifest()

    def test_equal_manifests_are_equal_bytes(self) -> None:
        raw = json.loads(manifest_to_json(manifest()))
        shuffled = json.dumps(dict(reversed(raw.items()))).encode()
        assert manifest_to_json(parse_manifest(shuffled)) == manifest_to_json(manifest())

    def test_nested_tuples_dicts_and_defaults(self) -> None:
        made = from_mapping(
            Outer, outer(inners=[{"size": 1}, {"size": 2, "ratio": 3}], table={"a": {"size": 4}}), where="o"
        )
        assert made.inners == (Inner(1), Inner(2, 3.0))
        assert made.table == {"a": Inner(4)}
        assert made.numbers == (1.0, 2.0) and made.maybe is None
        assert from_mapping(Outer, to_jsonable(made), where="o") == made

    numbers = st.floats(allow_nan=False, allow_infinity=False)
    counts = st.integers(-(2**60), 2**60)
    thresholds = st.builds(
        ThresholdSpec, numbers, st.text(max_size=20), counts, counts, numbers, numbers, numbers
    )
    scorings = st.builds(
        ScoringSpec,
        st.just("reweighted"),
        st.integers(1, 100),
        st.floats(0, 256),
        st.none() | thresholds,
        st.none() | thresholds,
    )
    sources = st.builds(
        SourceSpec, st.text(), st.text(), counts, counts, counts, st.text(),
        st.dictionaries(st.text(), st.none() | st.booleans() | numbers | st.text() | st.lists(counts)),
    )  # fmt: skip
    searches = st.builds(
        SearchSpec,
        st.integers(1, 65536),
        st.lists(st.builds(SearchMeasurement, counts, numbers, numbers, st.none() | numbers)).map(tuple),
        counts,
        st.none() | st.integers(min_value=1),
    )

    @settings(max_examples=150, deadline=None)
    @given(st.one_of(thresholds, scorings, sources, searches))
    def test_any_record_survives_json(self, record: Any) -> None:
        through_json = json.loads(json.dumps(to_jsonable(record), allow_nan=False))
        assert from_mapping(type(record), through_json, where="record") == record


class TestRefusals:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"name": 3}, r"o\.name: expected text, got 3"),
            ({"name": None}, r"o\.name: expected text, got None"),
            ({"count": 1.5}, r"o\.count: expected a whole number, got 1\.5"),
            ({"count": 1.0}, r"o\.count: expected a whole number, got 1\.0"),
            ({"count": "1"}, r"o\.count: expected a whole number, got '1'"),
            ({"count": True}, r"o\.count: expected a whole number, got True"),
            ({"share": True}, r"o\.share: expected a number, got True"),
            ({"share": "0.5"}, r"o\.share: expected a number, got '0\.5'"),
            ({"share": math.nan}, r"o\.share: expected a finite number, got nan"),
            ({"share": -math.inf}, r"o\.share: expected a finite number, got -inf"),
            ({"flag": 1}, r"o\.flag: expected true or false, got 1"),
            ({"flag": "yes"}, r"o\.flag: expected true or false"),
            ({"maybe": "x"}, r"o\.maybe: expected a whole number"),
            ({"maybe": False}, r"o\.maybe: expected a whole number"),
            ({"inner": 5}, r"o\.inner: expected a mapping, got 5"),
            ({"inner": {}}, r"o\.inner: missing size"),
            ({"inner": {"size": "big"}}, r"o\.inner\.size: expected a whole number"),
            ({"inner": {"size": 1, "sise": 2}}, r"o\.inner: unknown key 'sise'\. Did you mean 'size'\?"),
            ({"inners": {"size": 1}}, r"o\.inners: expected a list"),
            ({"inners": [{"size": 1}, {"size": None}]}, r"o\.inners\[1\]\.size: expected a whole number"),
            ({"numbers": [1, 2, math.nan]}, r"o\.numbers\[2\]: expected a finite number"),
            ({"numbers": "12"}, r"o\.numbers: expected a list, got '12'"),
            ({"table": [1]}, r"o\.table: expected a mapping, got \[1\]"),
            ({"table": {"a": {"size": 1}, "b": 2}}, r"o\.table\.b: expected a mapping, got 2"),
            ({"count": -1}, r"^o: count must be at least 0, got -1"),
            ({"shape": 1}, r"^o: unknown key 'shape'\. Did you mean 'share'\?"),
        ],
    )
    def test_message_names_the_dotted_key(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(RecordError, match=message):
            from_mapping(Outer, outer(**change), where="o")

    def test_all_missing_keys_are_named_at_once(self) -> None:
        with pytest.raises(RecordError, match=r"^o: missing count, share, inner$"):
            from_mapping(Outer, {"name": "n", "flag": False}, where="o")

    @pytest.mark.parametrize("data", [None, [], "text", 3])
    def test_no_mapping_at_all(self, data: object) -> None:
        with pytest.raises(RecordError, match=r"^o: expected a mapping"):
            from_mapping(Outer, data, where="o")

    def test_long_values_are_shortened(self) -> None:
        with pytest.raises(RecordError) as caught:
            from_mapping(Outer, outer(count="x" * 10_000), where="o")
        assert len(str(caught.value)) < 150

    def test_a_whole_number_is_a_float(self) -> None:
        share = from_mapping(Outer, outer(share=2), where="o").share
        assert share == 2.0 and type(share) is float

    @pytest.mark.parametrize("value, expected", [(None, None), (7, 7)])
    def test_optional_takes_null_and_its_type(self, value: int | None, expected: int | None) -> None:
        assert from_mapping(Outer, outer(maybe=value), where="o").maybe == expected


class TestNearestName:
    def test_a_close_name_is_suggested(self) -> None:
        assert nearest_name("treshold", ["threshold", "layers"]) == " Did you mean 'threshold'?"

    def test_nothing_is_suggested_for_a_far_one(self) -> None:
        assert nearest_name("zzz", ["threshold", "layers"]) == ""

    @given(st.text(string.printable), st.lists(st.text()))
    def test_any_text_is_safe(self, name: str, known: list[str]) -> None:
        assert isinstance(nearest_name(name, known), str)


class TestManifest:
    @pytest.mark.parametrize(
        "path, value, message",
        [
            ("memory_bank.coreset.candidates", "many", r"manifest\.memory_bank\.coreset\.candidates"),
            ("embedding.layers", ["layer2", 3], r"manifest\.embedding\.layers\[1\]: expected text"),
            ("embedding.mean_rgb", [0.1, True, 0.3], r"manifest\.embedding\.mean_rgb\[1\]"),
            ("files.embedder.onnx", None, None),
            (
                "search.measured",
                [{"ef": 1, "recall_at_1": 1.0}],
                r"search\.measured\[0\]: missing worst",
            ),
            ("search.ef", 0, r"manifest\.search: ef must be 1\.\.65536, got 0"),
            ("scoring.threshold.value", "high", r"manifest\.scoring\.threshold\.value: expected a number"),
            ("scoring.image_score", "mean", r"manifest\.scoring: image_score must be one of"),
            ("scoring.neighbours", 0, "neighbours belong to 'reweighted' alone"),
            ("scoring.map_sigma_px", -1, "map_sigma_px must be"),
            ("memory_bank.dim", 385, r"embedding\.dim is 384 but memory_bank\.dim is 385"),
            ("memory_bank.space", "cosine", "space must be 'l2', got 'cosine'"),
            ("preprocess.crop_height_px", 300, r"manifest\.preprocess: the crop .* must fit"),
            ("preprocess.keep_aspect", 1, r"manifest\.preprocess\.keep_aspect: expected true or false"),
            ("files", {}, r"files does not list embedder\.onnx"),
            ("search.dim", 0, r"manifest\.search: dim must be at least 1 or null, got 0"),
            ("search.dim", 384, r"manifest: search\.dim is 384, expected less than memory_bank\.dim, 384"),
            ("search.dim", 383, r"manifest: files does not list search_basis\.npy"),
            (
                "search.basis_dim",
                3,
                r"manifest\.search: basis_dim must be null or at least dim, which is None",
            ),
            ("search.dim", 3.0, r"manifest\.search\.dim: expected a whole number, got 3\.0"),
            ("schema_version", 4, "schema version 4, this runtime reads up to 3.*Upgrade"),
            ("schema_version", True, "schema_version True, expected a whole number"),
            ("method", "padim", "method is 'padim', this runtime knows 'patchcore'"),
            ("nmae", "x", r"unknown key 'nmae'\. Did you mean 'name'\?"),
        ],
    )
    def test_bad_value_is_named(self, path: str, value: Any, message: str | None) -> None:
        if message is None:
            raw = to_jsonable(manifest())
            raw["files"]["embedder.onnx"] = value
            data, message = json.dumps(raw).encode(), r"manifest\.files\.embedder\.onnx: expected a mapping"
        else:
            data = edited(path, value)
        with pytest.raises(BundleError, match=message):
            parse_manifest(data)

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"]
    )
    def test_invalid_json(self, data: bytes) -> None:
        with pytest.raises(BundleError, match="not valid JSON"):
            parse_manifest(data)

    @pytest.mark.parametrize("data", [b"[]", b"null", b'"manifest"', b"1"])
    def test_json_that_is_no_object(self, data: bytes) -> None:
        with pytest.raises(BundleError, match="no JSON object"):
            parse_manifest(data)

    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
    def test_constants_that_json_does_not_know(self, constant: str) -> None:
        data = manifest_to_json(manifest()).replace(
            b'"map_sigma_px": 4.0', f'"map_sigma_px": {constant}'.encode()
        )
        with pytest.raises(BundleError, match=rf"{constant} is not a number a manifest may hold"):
            parse_manifest(data)

    def test_a_number_too_large_for_a_float_is_refused(self) -> None:
        data = manifest_to_json(manifest()).replace(b'"map_sigma_px": 4.0', b'"map_sigma_px": 1e999')
        with pytest.raises(BundleError, match=r"manifest\.scoring\.map_sigma_px: expected a finite number"):
            parse_manifest(data)

    def test_a_whole_number_too_large_for_a_float_is_refused(self) -> None:
        data = manifest_to_json(manifest()).replace(b'"map_sigma_px": 4.0', b'"map_sigma_px": 1' + b"0" * 400)
        with pytest.raises(BundleError, match=r"manifest\.scoring\.map_sigma_px"):
            parse_manifest(data)
