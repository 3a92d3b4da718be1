"""Programs that show the system: each module turns records of the kernel into text for a person.

The shell's commands and the command line's verbs of the same names share them, as a shell and its user share /bin.
"""
