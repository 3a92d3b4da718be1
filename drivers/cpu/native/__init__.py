"""The native decoder: whole steps of llama-like networks in C, without torch.

Eager torch takes seconds to import, spends 5-10 us on each of some 600 operations a step, and its threads meet at every
one of them. Here a step is one call. config.py and rope.py read what a model is, library.py loads what was compiled from
the C files beside it, packing.py puts weights into the order that its products read them in, network.py describes a model
to it, image.py is the engine's image with all of that.
"""
