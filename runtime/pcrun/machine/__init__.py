"""This machine: its processor, threads and GPU, and the software on it."""
