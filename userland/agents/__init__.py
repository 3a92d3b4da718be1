"""Example agents: small programs on the system calls, one operating system idea each.

Run one with `llmasos run userland/agents/NAME.py` on the kernel that runs, or with plain `python`, which boots a private
one if none does. docs/programming.md explains what they use.
"""
