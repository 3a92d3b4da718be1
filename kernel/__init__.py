"""The microkernel. Imports syscalls/ and drivers/protocol.py, and nothing else of ours; never torch."""
