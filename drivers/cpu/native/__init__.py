"""The native decoder: whole steps of llama-like networks in C, for weights of 8 and 4 bits.

Eager torch spends 5-10 us on each of some 600 operations a step, and its threads meet at every one of them. Here a step
is one call. library.py loads what was compiled from the C files beside it, packing.py puts weights into the order that
its products read them in, network.py describes a model to it, image.py is the engine's image with all of that.
"""
