"""`pcbench compare`: which latencies differ by more than chance explains."""
