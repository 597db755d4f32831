"""Frozen pretrained backbones that return mid-level feature maps.

`registry` names them and imports no torch; `loader` builds one and does; `student_file` reads one without.
"""
