"""The engine, shared by the drivers of real devices: models in memory, KV frames, steps, sampling.

engine.py answers requests. models.py, files.py, dtypes.py and layout.py are about what a model on disk is and how it is
run; image.py is what models in memory have in common. kv.py, contexts.py and checkpoint.py hold what processes have;
moving.py, swap.py, host_places.py, disk_places.py and swap_file.py take it to lower tiers and back. computing.py computes
an image's runs, with guesses (guess.py), ahead of being asked where that can be (early.py, ahead.py); sampler.py and
philox.py choose tokens. None of these imports torch. What torch runs is made by torch_kind.py, which imports late:
architecture.py and loading.py bring a model there, torch_image.py holds it, plan.py, attention.py and torch_kv.py compute
a step, int8.py is the quantised linear layer.
"""
