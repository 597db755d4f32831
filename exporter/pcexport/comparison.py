"""The deployed graph beside the float32 one it was made from: drift, verdicts and AUROC."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcexport.calibration.false_alarm_rate import CalibrationPlan, choose_threshold
from pcexport.calibration.thresholds import NormalScores
from pcexport.config import BuildConfig
from pcexport.datasets import ImageRef
from pcexport.datasets.samples import ImageSamples
from pcexport.errors import BuildError
from pcexport.evaluate import image_auroc
from pcexport.graph.network import TracedNetwork
from pcexport.graph.precision import REFERENCE
from pcexport.memory_bank.bank import neighbour_lists
from pcexport.memory_bank.embed import EmbeddedImages, embed_images
from pcexport.progress import Steps
from pcrun.backends.embedder import Embedder
from pcrun.bundle.manifest import Manifest, PrecisionSpec, ThresholdSpec
from pcrun.detector import NO_THRESHOLD
from pcrun.machine.threads import available_cores
from pcrun.scoring.open import map_geometry, open_bank_scorer
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search import SearchBasis
from pcrun.types import FloatArray, Int64Array

_TINY = 1e-12


@dataclass(frozen=True)
class Flip:
    """A normal image on which the two sides disagree; scores and thresholds in L2 units."""

    image: str
    score: float
    threshold: float
    reference_score: float
    reference_threshold: float

    def __str__(self) -> str:
        return (
            f"{self.image} {self.score:.4f} (threshold {self.threshold:.4f}), in {REFERENCE} "
            f"{self.reference_score:.4f} (threshold {self.reference_threshold:.4f})"
        )


@dataclass(frozen=True)
class Reference:
    """The traced float32 network on the same images, with the same patches in every memory bank.

    Attributes:
        embedder: runs it.
        embedded: its embeddings of the normal images.
        bank: rows of the final memory bank.
        manifest: of the bundle, thresholds included.
        basis: directions in which the bundle searches, or None; only speed depends on them.
        config: of the build.
    """

    embedder: Embedder
    embedded: EmbeddedImages
    bank: Int64Array
    manifest: Manifest
    basis: SearchBasis | None
    config: BuildConfig

    def scorer(self, rows: Int64Array) -> PatchCoreScorer:
        """A scorer whose bank holds these patches; its image score is that of brute force."""
        bank, config = self.embedded.full.gather(rows), self.config
        return open_bank_scorer(
            bank,
            map_geometry(self.manifest),
            threads=config.threads or available_cores(),
            # Those of projected embeddings have another length.
            basis=None if self.manifest.embedding.projected_from else self.basis,
            neighbours=neighbour_lists(bank, config) if config.image_score == "reweighted" else None,
        )

    def score_normals(self, plan: CalibrationPlan, banks: Sequence[Int64Array]) -> list[float]:
        """Image scores of all folds, in their order; `banks` holds the rows of each fold's memory bank."""
        scores: list[float] = []
        for fold, rows in zip(plan.folds, banks, strict=True):
            scorer = self.scorer(rows)
            scores += [_image_score(scorer, self.embedded.image(int(index))) for index in fold]
        return scores

    def auroc(self, samples: ImageSamples) -> float | None:
        """Image AUROC on the readable test images with the final memory bank; None without both kinds."""
        test = {image.ref: image.is_defective for image in samples.dataset.test}
        if len(set(test.values())) < 2:
            return None
        scorer = self.scorer(self.bank)
        scored = [
            (test[ref], _image_score(scorer, self.embedder.embed(image[None])[0]))
            for ref, image in samples.prepared(test)
        ]
        defective = np.array([label for label, _ in scored], bool)
        if not defective.any() or defective.all():
            return None
        return image_auroc(np.array([score for _, score in scored]), defective)


def _image_score(scorer: PatchCoreScorer, embeddings: FloatArray) -> float:
    return scorer.score(embeddings, pixel_threshold=NO_THRESHOLD).image_score


def has_threshold(manifest: Manifest, steps: Steps) -> bool:
    """Whether there are verdicts to compare with those of float32; warns where there are none."""
    if manifest.scoring.threshold is None:
        steps.warn(
            f"what the graph does to the scores was not compared with {REFERENCE} (--calibration none)"
        )
    return manifest.scoring.threshold is not None


def embed_reference(
    traced: TracedNetwork,
    embedder: Embedder,
    images: Sequence[ImageRef],
    samples: ImageSamples,
    folder: Path,
    steps: Steps,
) -> EmbeddedImages:
    """Embed the same normal images once more, with the float32 graph, into a folder of their own."""
    folder.mkdir()
    with steps.step(f"embed in {REFERENCE}", len(images)) as step:
        return embed_images(
            dataclasses.replace(samples.dataset, normal=tuple(images)),
            samples.reader(strict=True),
            embedder,
            spec=traced.spec,
            preprocessing=samples.preprocessing,
            folder=folder,
            step=step,
        )


def compare_precision(
    reference: Reference, scores: NormalScores, plan: CalibrationPlan, samples: ImageSamples, steps: Steps
) -> Manifest:
    """The manifest with what the deployed graph does to scores and verdicts, beside float32.

    Raises:
        BuildError: a verdict changes, and flips are not allowed.
    """
    manifest, config = reference.manifest, reference.config
    assert manifest.scoring.threshold is not None  # the caller asks `has_threshold`
    with steps.step(f"compare with {REFERENCE}"):
        expected = reference.score_normals(plan, scores.banks or [reference.bank] * len(plan.folds))
        images = [reference.embedded.refs[index] for fold in plan.folds for index in fold]
        spec, flips = compare_scores(images, scores.image_scores, expected, manifest.scoring.threshold)
        require_no_flips(flips, config, steps)
        auroc = reference.auroc(samples) if config.evaluate else None
    return dataclasses.replace(manifest, precision=dataclasses.replace(spec, reference_auroc=auroc))


def compare_scores(
    images: Sequence[ImageRef], scores: Sequence[float], reference: Sequence[float], threshold: ThresholdSpec
) -> tuple[PrecisionSpec, tuple[Flip, ...]]:
    """Drift of the calibration images' scores, and the verdicts that changed with it.

    Args:
        images: what was scored.
        scores: what the bundle's arithmetic gives them.
        reference: what float32 gives them.
        threshold: the bundle's; the reference's own is chosen in the same way.
    """
    limits = threshold.value, _same_rule(reference, threshold).value
    flips = tuple(
        Flip(image.name, score, limits[0], other, limits[1])
        for image, score, other in zip(images, scores, reference, strict=True)
        if (score > limits[0]) != (other > limits[1])
    )
    # Images that are all equal score 0, and so is their threshold.
    drift = np.abs(np.subtract(scores, reference)) / max(limits[1], _TINY)
    spec = PrecisionSpec(REFERENCE, len(images), float(drift.mean()), float(drift.max()), len(flips))
    return spec, flips


def _same_rule(scores: Sequence[float], threshold: ThresholdSpec) -> ThresholdSpec:
    return choose_threshold(scores, rate=threshold.false_alarm_rate_requested, method=threshold.method)


def require_no_flips(flips: Sequence[Flip], config: BuildConfig, steps: Steps) -> None:
    """Name every image that got another verdict.

    Raises:
        BuildError: there is one, and flips are not allowed.
    """
    if not flips:
        return
    listed = (
        f"{len(flips)} of the calibration images get another verdict than in {REFERENCE}: "
        f"{'; '.join(map(str, flips))}."
    )
    if not config.allow_flips:
        raise BuildError(
            f"{listed} Expected the same verdicts; look at these images and pass --allow-flips when either "
            "verdict will do, or use another --precision or a larger --project. Nothing was written."
        )
    steps.warn(listed)
