"""One worker an engine, `python -m benchmarks.agents.workers.NAME`, run by the interpreter of the engine's environment;
each adds agents to the engine's worker in benchmarks/peers/workers.
"""
