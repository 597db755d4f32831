"""Latency suites and reports over pcrun (no torch)."""
