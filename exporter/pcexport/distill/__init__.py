"""Distilling a small backbone from a large one: procedural pictures, teacher's targets, training, export."""

# Here, so that `pcexport --help` need not import torch; `student.STUDENTS` holds their shapes.
STUDENT_NAMES = ("edge-s", "edge-m")
