"""Whether a peer gives our results, before its time counts for anything."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pcrun.errors import PcError
from pcrun.types import Float64Array, FloatArray

# float32 rounds differently in each; |q|^2 - 2 q.r + |r|^2 loses digits where it is small. A tenth of what
# golden samples allow.
TOLERANCE_RELATIVE = 1e-4
# A score near 0 has no relative precision: differences are relative to at least this share of the largest.
_FLOOR = 0.1


@dataclass(frozen=True)
class Results:
    """What a contender said of all images.

    Attributes:
        scores: (images,) in L2 units.
        maps: (images, height, width) in L2 units.
    """

    scores: Float64Array
    maps: FloatArray


def differences(results: Results, ours: Results, exact_maps: FloatArray) -> dict[str, Any]:
    """How far a contender's results are from ours.

    Args:
        results: the contender's.
        ours: `pcrun`'s.
        exact_maps: of `pcrun` at exactness "full": at "mask" a map is brute force's inside the mask alone.

    Returns:
        Largest and mean relative difference of the image score, and the largest of the map relative to its
        largest value.
    """
    floor = np.maximum(np.abs(ours.scores), _FLOOR * np.abs(ours.scores).max())
    of_score = np.abs(results.scores - ours.scores) / np.maximum(floor, np.finfo(np.float32).tiny)
    return {
        "max_score_difference": float(of_score.max()),
        "mean_score_difference": float(of_score.mean()),
        "max_map_difference": float(np.abs(results.maps - exact_maps).max() / exact_maps.max()),
    }


def require_equal(title: str, found: dict[str, Any]) -> None:
    """Refuse a contender that must give our results and does not.

    Raises:
        PcError: with the difference.
    """
    for what, key in (("image scores", "max_score_difference"), ("anomaly maps", "max_map_difference")):
        # Not `>`, so that NaN is refused as well.
        if not found[key] <= TOLERANCE_RELATIVE:
            raise PcError(
                f"The {what} of {title} differ from pcrun's by {found[key]:.2g}, relatively. Expected at "
                f"most {TOLERANCE_RELATIVE:g}: bank and graph are the same. Nothing was timed; report this."
            )
