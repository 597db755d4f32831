"""`pcrun bench`: how fast a bundle is on this device, and how far that can be trusted.

`measure` is the whole job; `scenarios` asks for verdicts, `statistics` sums up, `conditions` watches the
machine.
"""
