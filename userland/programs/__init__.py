"""Programs that show the system: each module turns records of the kernel into what a person reads.

The shell's commands and the command line's verbs of the same names share them, as a shell and its user share /bin.
"""
