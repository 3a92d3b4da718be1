"""The engine, shared by the drivers of real devices: models in memory, KV frames, steps, sampling.

engine.py answers requests; image.py is what models in memory have in common; files.py and layout.py are about
what they are read from; kv.py, contexts.py, swap.py and checkpoint.py keep what processes have; sampler.py and
philox.py choose tokens. None of these imports torch. What torch runs is made by torch_kind.py, which imports late:
architecture.py and loading.py bring a model there, torch_image.py holds it, plan.py, attention.py and torch_kv.py compute
a step, int8.py is the quantised linear layer.
"""
