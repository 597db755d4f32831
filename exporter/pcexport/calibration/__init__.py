"""Thresholds at a stated false-alarm rate, in a build and for a finished bundle."""
