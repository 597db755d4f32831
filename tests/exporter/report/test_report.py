"""The bundle's report: equal bytes, self-contained, true to the manifest, sound when parts are missing."""

import dataclasses
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

from pcexport.calibration.false_alarm_rate import choose_threshold
from pcexport.calibration.thresholds import NormalScores
from pcexport.datasets import ImageRef, TestImage
from pcexport.datasets.reader import ImageReader
from pcexport.demo.parts import render_part
from pcexport.evaluate import TestScore, accuracy_of
from pcexport.report.chart import ScoreGroup, draw_scores
from pcexport.report.format import format_bytes, format_l2, format_rate, format_small, out_of
from pcexport.report.write import best_f1, group_scores, write_report
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    MEMORY_BANK_NAME,
    AccuracySpec,
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
)
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.preprocess import PreprocessSpec
from pcrun.result import AnomalyResult, Region, StageTimings
from pcrun.types import UInt8Array

_HOSTILE = """<script>alert("1")</script>&'$x$"""
_MEASURED = (
    (4, 0.8512, 0.6021),
    (8, 0.9433, 0.2114),
    (16, 0.9842, 0.0573),
    (32, 0.99995, 0.0),
    (64, 1.0, 0.0),
)


class StubDetector:
    """Finds what is far from the image's own median grey, as a detector would: same image, same result."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        spec = manifest.scoring
        self.threshold = spec.threshold.value if spec.threshold else NO_THRESHOLD
        self.pixel_threshold = spec.pixel_threshold.value if spec.pixel_threshold else NO_THRESHOLD

    def __call__(self, image: UInt8Array) -> AnomalyResult:
        grey = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA).mean(axis=2, dtype=np.float32)
        heat = cv2.GaussianBlur(np.abs(grey - np.median(grey)) / np.float32(64), (0, 0), 4)
        score = float(heat.max())
        mask = heat > np.float64(self.pixel_threshold)
        height, width = image.shape[:2]
        region = Region(width // 4, height // 4, width // 5, height // 6, 900, score)
        regions = (region,) if mask.any() else ()
        timings = StageTimings(1.0, 2.0, 3.0, 4.0, 5.0)
        flagged = score > self.threshold
        return AnomalyResult(
            score,
            self.threshold,
            flagged,
            heat,
            heat,
            self.pixel_threshold,
            mask,
            regions,
            timings,
            "image",
            "hnsw",
            3,
        )


@dataclasses.dataclass(frozen=True)
class Build:
    """What `write_report` is given."""

    manifest: Manifest
    scores: NormalScores
    tests: list[TestScore]
    samples: list[tuple[ImageRef, str]]
    root: Path

    def render(self, path: Path, **changes: Any) -> str:
        build = dataclasses.replace(self, **changes)
        reader = ImageReader(build.root, white_level_16bit=65535, strict=True, warn=lambda text: None)
        detector = cast(AnomalyDetector, StubDetector(build.manifest))
        write_report(path, build.manifest, build.scores, build.tests, build.samples, reader, detector)
        return path.read_text(encoding="utf-8")


def _manifest(threshold: ThresholdSpec, pixel: ThresholdSpec, accuracy: AccuracySpec | None) -> Manifest:
    names = (EMBEDDER_NAME, MEMORY_BANK_NAME, INDEX_NAME)
    return Manifest(
        name="bottle",
        files={name: FileEntry(f"{i}a7c" * 16, 9_155_072 * (i + 1)) for i, name in enumerate(names)},
        created_by={"patchcore-edge": "0.1.0", "python": "3.11.7", "numpy": "2.2.0", "torch": "2.9.1"},
        source=SourceSpec(
            name="bottle", layout="mvtec", images_bank=761, images_held_out=190, images_skipped=0,
            content_sha256="5e" * 32,
            config={"backbone": "resnet18", "layers": None, "coreset_ratio": 0.01, "evaluate": True},
        ),
        preprocess=PreprocessSpec(224, 224, 224, 224),
        embedding=EmbeddingSpec(
            backbone="resnet18", layers=("layer2", "layer3"),
            weights_source="file resnet18.pth", weights_sha256="f3" * 32,
            aggregation="locally_aware", neighbourhood=3, grid_height=28, grid_width=28, dim=384, batch=1,
            precision="fp32", mean_rgb=(0.485, 0.456, 0.406), std_rgb=(0.229, 0.224, 0.225), opset=18,
        ),
        memory_bank=MemoryBankSpec(
            5966, 384, CoresetSpec("kcenter", 596_624, 128, 0, 1.23456), IndexSpec(16, 200, 0)
        ),
        search=SearchSpec(16, tuple(SearchMeasurement(*row) for row in _MEASURED), 24),
        scoring=ScoringSpec("max", 0, 4.0, threshold, pixel),
        parity=ParitySpec(8, 3.14e-6, 7.7e-7, 1e-3),
        accuracy=accuracy,
    )  # fmt: skip


def _images(root: Path, kinds: dict[str, int]) -> list[TestImage]:
    images = []
    for number, (kind, count) in enumerate(kinds.items()):
        for index in range(count):
            path = root / kind / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            defect = None if kind == "good" else kind
            image, _ = render_part(np.random.default_rng([number, index]), 400, defect)
            cv2.imwrite(str(path), image)
            images.append(TestImage(path, defect))
    return images


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    root = tmp_path_factory.mktemp("data")
    images = _images(root, {"good": 2, "scratch": 1, "stain": 1})
    rng = np.random.default_rng(0)
    normal = NormalScores(rng.normal(1.9, 0.12, 190).tolist(), rng.normal(1.7, 0.12, 190).tolist())
    threshold = choose_threshold(normal.image_scores, rate=0.01, method="holdout")
    pixel = choose_threshold(normal.map_maxima, rate=0.01, method="holdout")
    tests = []
    for kind, mean, count in ((None, 1.92, 95), ("scratch", 2.7, 57), ("stain", 3.1, 115), ("dent", 2.5, 3)):
        for index, score in enumerate(rng.normal(mean, 0.12 if kind is None else 0.35, count).tolist()):
            image = TestImage(root / f"{kind or 'good'}_{index:03d}.png", kind)
            tests.append(TestScore(image, score, score > threshold.value))
    samples = [(image.ref, "defective" if image.is_defective else "normal") for image in images]
    return Build(_manifest(threshold, pixel, accuracy_of(tests)), normal, tests, samples, root)


@pytest.fixture(scope="module")
def page(build: Build, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build.render(tmp_path_factory.mktemp("report") / "report.html")


class _Page(HTMLParser):
    """Tags with their attributes, and the text outside `<style>`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _assert_self_contained(page: str) -> None:
    parsed = _Page(page)
    assert "http" not in page
    assert "url(" not in page and "@import" not in page
    assert not {"script", "link", "iframe", "object", "use", "image"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert "id" not in attributes, "two charts in one page must not share ids"
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert (value or "").startswith("data:image/jpeg;base64,")


def _assert_no_broken_values(page: str) -> None:
    text = _Page(page).text
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE)
    assert "None" not in text and "Undefined" not in text
    assert str(NO_THRESHOLD)[:6] not in text and "179769" not in text


def test_two_renders_are_equal_bytes(build: Build, page: str, tmp_path: Path) -> None:
    assert build.render(tmp_path / "elsewhere.html") == page


def test_user_matplotlib_settings_change_nothing(build: Build, page: str, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": True}):
        assert build.render(tmp_path / "report.html") == page


def test_it_is_self_contained_and_small(page: str) -> None:
    _assert_self_contained(page)
    _assert_no_broken_values(page)
    assert len(page.encode()) < 1_500_000


def test_it_says_nothing_of_where_it_was_built(build: Build, page: str) -> None:
    assert str(build.root) not in page and str(Path.home()) not in page


def test_headline_numbers_are_the_manifests(build: Build, page: str) -> None:
    threshold, accuracy = build.manifest.scoring.threshold, build.manifest.accuracy
    assert threshold is not None and accuracy is not None
    text = _Page(page).text
    assert f"its score is above {threshold.value:.3f} ." in text
    assert f"at most {threshold.false_alarm_rate_upper_95:.2%}" in text
    assert f"Image AUROC {accuracy.image_auroc:.4f}" in text
    assert f"False alarms {accuracy.false_alarms} of 95" in text
    assert f"Misses {accuracy.misses} of 175" in text
    assert "16 in use 98.42% 5.73%" in text
    assert "memory bank of 5,966 patches" in text
    assert "951 normal images" in text


def test_tables_count_each_class(build: Build, page: str) -> None:
    text = _Page(page).text
    for group in group_scores(build.scores, build.tests, build.manifest.scoring.threshold):
        share = format_rate(group.flagged / len(group.scores))
        assert f"{group.name} {len(group.scores)} {group.flagged} {share} {group.median:.3f}" in text


def test_shortage_is_said_in_both_degrees(build: Build, tmp_path: Path) -> None:
    def render(images: int) -> str:
        threshold = choose_threshold(build.scores.image_scores[:images], rate=0.01, method="kfold")
        scoring = dataclasses.replace(build.manifest.scoring, threshold=threshold)
        manifest = dataclasses.replace(build.manifest, scoring=scoring)
        return _Page(build.render(tmp_path / "report.html", manifest=manifest, samples=[])).text

    assert "Too few normal images for this false-alarm rate 20 normal images cannot support" in render(20)
    assert "More normal images would make the rate certain" in render(150)


def test_hostile_names_are_escaped(build: Build, tmp_path: Path) -> None:
    hostile = build.root / f"{_HOSTILE.replace('/', '')}.png"
    hostile.write_bytes(build.samples[0][0].path.read_bytes())
    tests = [TestScore(TestImage(hostile, _HOSTILE), 9.0, False), *build.tests]
    config = {_HOSTILE: _HOSTILE}
    manifest = dataclasses.replace(
        build.manifest,
        name=_HOSTILE,
        source=dataclasses.replace(build.manifest.source, name=_HOSTILE, layout=_HOSTILE, config=config),
        created_by={_HOSTILE: _HOSTILE},
    )
    page = build.render(
        tmp_path / "r.html", manifest=manifest, tests=tests, samples=[(ImageRef(hostile), _HOSTILE)]
    )
    _assert_self_contained(page)
    assert _HOSTILE in _Page(page).text
    assert "alert(&#34;1" in page


def test_a_file_name_that_is_not_utf8(build: Build, tmp_path: Path) -> None:
    name = b"part\xff.png".decode("utf-8", "surrogateescape")
    tests = [TestScore(TestImage(Path(name), name), 0.1, False), *build.tests]
    page = build.render(tmp_path / "report.html", tests=tests, samples=[])
    assert page.count("part?.png") >= 2
    assert "漢字" in build.render(
        tmp_path / "r.html", tests=[TestScore(TestImage(Path("a"), "漢字"), 1.0, True)], samples=[]
    )


def _without(**parts: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, **parts)


def _without_threshold(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, scoring=ScoringSpec("reweighted", 9, 0.0), files=_reweighted_files(manifest)
    )


def _reweighted_files(manifest: Manifest) -> dict[str, FileEntry]:
    return {**manifest.files, "neighbours.npy": FileEntry("0" * 64, 1)}


def _without_index(manifest: Manifest) -> Manifest:
    coreset = CoresetSpec("random", 596_624, 128, 0, None)
    bank = dataclasses.replace(manifest.memory_bank, index=None, coreset=coreset)
    return dataclasses.replace(manifest, memory_bank=bank, search=SearchSpec(128, (), 0))


def _bare(manifest: Manifest) -> Manifest:
    embedding = dataclasses.replace(
        manifest.embedding, weights_sha256=None, weights_source="untrained (seed 0)", batch=None
    )
    source = dataclasses.replace(manifest.source, config={}, images_skipped=1)
    bare = dataclasses.replace(
        manifest, embedding=embedding, source=source, created_by={}, parity=None, accuracy=None
    )
    return _without_index(_without_threshold(bare))


_NO_SCORES = NormalScores([], [])


@pytest.mark.parametrize(
    "change, inputs, said",
    [
        (_without(parity=None), {}, "Not measured."),
        (_without(accuracy=None), {"tests": []}, "how many defects this bundle finds was not measured"),
        (_without_index, {}, "none, exact search"),
        (_without_threshold, {}, "This bundle has no threshold of its own."),
        (_without(), {"scores": NormalScores([2.0], [1.8]), "tests": []}, "Calibration normals 1 0 0% 2.000"),
        (
            _without(),
            {"scores": NormalScores([0.0] * 3, [0.0] * 3), "tests": []},
            "Calibration normals 3 0 0% 0.000",
        ),
        (_without(), {"samples": []}, "The bundle holds no golden samples."),
        (_bare, {"scores": _NO_SCORES, "tests": [], "samples": []}, "The backbone is untrained"),
        (_bare, {"scores": _NO_SCORES, "tests": []}, "1 image was left out"),
    ],
)
def test_missing_parts(
    build: Build, tmp_path: Path, change: Callable[[Manifest], Manifest], inputs: dict[str, Any], said: str
) -> None:
    page = build.render(tmp_path / "report.html", manifest=change(build.manifest), **inputs)
    _assert_self_contained(page)
    _assert_no_broken_values(page)
    assert said in _Page(page).text
    has_scores = bool(inputs.get("scores", build.scores).image_scores)
    assert page.count("<svg") == (2 if has_scores else 0)


def test_at_most_twelve_samples_are_pictured(build: Build, tmp_path: Path) -> None:
    page = build.render(tmp_path / "report.html", samples=build.samples * 16, tests=[])
    assert page.count("<img") == 12
    assert "12 of 64 are shown" in _Page(page).text
    assert len(page.encode()) < 1_500_000


def test_pictures_are_scaled_down(build: Build, page: str) -> None:
    import base64

    sizes = set()
    for data in re.findall(r"base64,([^\"]+)", page):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        sizes.add(picture.shape[:2])
    assert sizes == {(320, 320)}


def test_no_bar_straddles_the_threshold() -> None:
    def bars(threshold: float, scores: tuple[float, ...]) -> tuple[int, int]:
        svg = draw_scores([ScoreGroup("all", "normal", scores, 0)], threshold, wide=True)
        assert svg is not None
        return svg.count("fill: var(--accent)"), svg.count("fill: var(--alarm)")

    assert bars(2.0, (1.0, 2.0)) == (2, 0), "a score equal to the threshold is normal"
    assert bars(2.0, (1.0, float(np.nextafter(2.0, 3.0)))) == (1, 1)
    assert bars(0.1 + 0.2, (0.1 + 0.2,)) == (1, 0)
    assert bars(0.0, (5.0, 1e9)) == (0, 2)


def test_chart_of_many_classes_is_bounded() -> None:
    groups = [ScoreGroup(f"class {i}", "defective", (1.0 + i, 2.0), 0) for i in range(60)]
    svg = draw_scores(groups, 1.5, wide=False)
    assert svg is not None
    assert "class 12<" in svg and "class 13<" not in svg and "47 other classes" in svg


def test_best_f1_separates_what_can_be_separated() -> None:
    def scored(*pairs: tuple[float, str | None]) -> list[TestScore]:
        return [TestScore(TestImage(Path("a"), defect), score, False) for score, defect in pairs]

    clean = best_f1(scored((1.0, None), (2.0, None), (4.0, "x"), (5.0, "x")))
    assert clean is not None and (clean.threshold, clean.f1, clean.false_alarms, clean.misses) == (
        3.0,
        1.0,
        0,
        0,
    )
    tied = best_f1(scored((1.0, None), (2.0, None), (2.0, "x")))
    assert tied is not None and (tied.threshold, tied.false_alarms, tied.misses) == (1.5, 1, 0)
    assert best_f1(scored((1.0, None))) is None


def test_numbers_as_people_read_them() -> None:
    assert [format_l2(v) for v in (2.34567, 23.4567, 12345.6, 0.0123456, 0, None, float("nan"))] == [
        "2.346", "23.46", "12,346", "0.01235", "0.000", "–", "–",
    ]  # fmt: skip
    assert [format_rate(v) for v in (0.0, 1e-6, 0.0102, 0.99999, 1.0)] == [
        "0%",
        "<0.01%",
        "1.02%",
        ">99.99%",
        "100%",
    ]
    assert [format_small(v) for v in (3.14e-6, 1e-3, 0.0)] == ["3.1 × 10⁻⁶", "0.001", "0"]
    assert [format_bytes(v) for v in (12, 10_049_768, 135_400, 2_500_000_000)] == [
        "12 B", "10.0 MB", "135 kB", "2.50 GB",
    ]  # fmt: skip


def test_rates_as_counts() -> None:
    spec = choose_threshold(np.arange(190.0).tolist(), rate=0.01, method="holdout")
    assert out_of(spec) == (5, math.ceil(1000 * spec.false_alarm_rate_upper_95), 1000)
    two = choose_threshold([1.0, 2.0], rate=0.01, method="kfold")
    assert out_of(two) == (33, math.ceil(100 * two.false_alarm_rate_upper_95), 100)
