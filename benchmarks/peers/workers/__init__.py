"""One worker an engine, `python -m benchmarks.peers.workers.NAME`, run by the interpreter of the engine's environment.

They import the standard library, their engine and what it brings, and the protocol; nothing else of the project, but
for that of the system itself.
"""
