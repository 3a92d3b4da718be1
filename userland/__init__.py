"""Userland: programs on the system calls. sdk/ is what Python programs import, shell/ the shell, programs/ the commands,
demo/ the tour.
"""
