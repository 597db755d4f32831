"""PatchCore Edge exporter: from a folder of normal images to a verified bundle (needs the `export` extra)."""
