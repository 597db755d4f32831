"""`pcexport demo`: part images, a bundle and verdicts, from nothing."""
