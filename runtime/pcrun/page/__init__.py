"""The live page: what a line sees and says, in a browser.

`state` keeps what is shown, `pictures` paints, `server` answers browsers, `sink` ties them to a run.
"""
