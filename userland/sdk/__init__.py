"""What a Python author imports (re-exported by `llmasos`): text in, text out, on top of the system calls.

`system` is the blocking face, `aio` the asynchronous one; `actions` holds what both do, `script` how.
"""
