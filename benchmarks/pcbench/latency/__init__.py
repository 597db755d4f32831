"""`pcbench latency`: many settings, one after the other, each in a process and a file of its own.

`sweep` is the whole job; `cell` says what is measured, `worker` measures it.
"""
