"""The ABI: all that userland and kernel share. Imports nothing else of this project."""
