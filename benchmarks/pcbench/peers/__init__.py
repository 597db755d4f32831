"""`pcbench peers`: a bundle beside what a user would deploy instead, pair by pair.

`contenders` says who takes part, `worker` is the process that each of them has, `measure` plays the pairs.
"""
