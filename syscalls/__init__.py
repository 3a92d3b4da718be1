"""The ABI: the only thing userland and kernel share. Imports nothing else of this project."""
