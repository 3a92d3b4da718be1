"""The SDK, which `llmasos` and `llmasos.aio` export: text in, text out, on top of the system calls.

system.py, process.py, talk.py, llm.py and client.py are the blocking face, made from the asynchronous one (the same names
with `_async`).
Scripts (script.py) are what both do; actions.py, answers.py, turns.py and options.py hold them.
"""
