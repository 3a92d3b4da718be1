"""Userland: programs on the system calls. sdk/ is what Python programs import, shell/ the shell, programs/ the commands,
top/ the full-screen one, demo/ the tour, doctor.py what this machine can do.
"""
