"""The journal: what the kernel must remember to go on after its own death."""
