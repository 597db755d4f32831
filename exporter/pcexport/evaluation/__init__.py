"""`pcexport eval`: how good a bundle is on labelled images, as the runtime sees them.

`run` is the whole job; `scored` runs the bundle, `metrics` sums up, `report` shows, `paired` puts bundles
side by side.
"""
