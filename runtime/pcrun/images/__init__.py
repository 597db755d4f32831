"""Image files, and pictures for people."""
