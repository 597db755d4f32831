"""A tiny teacher and student for tests."""

from __future__ import annotations

from pcexport.backbones.loader import LoadedBackbone, load_backbone
from pcexport.backbones.registry import find_backbone
from pcexport.distill.student import StudentSpec

SIZE = 32
TINY = StudentSpec("tiny", 4, (6, 8, 8), (1, 1, 1), "for tests")
FACTS = {"pictures": 12, "size_px": SIZE, "seed": 0, "generator": 1, "teacher": "resnet18"}


def tiny_teacher(size: int = SIZE) -> LoadedBackbone:
    return load_backbone(find_backbone("resnet18"), weights="untrained", image_hw=(size, size), seed=0)
