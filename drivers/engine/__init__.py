"""The torch engine, shared by the drivers of real devices: models, paged KV, attention, sampling.

engine.py answers requests; image.py is a model in memory; architecture.py, source.py and loading.py bring it
there; plan.py, attention.py, kv.py and contexts.py compute a step; sampler.py and philox.py choose tokens; int8.py
is the quantised linear layer.
"""
