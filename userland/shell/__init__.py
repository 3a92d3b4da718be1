"""The shell: grammar.py and words.py declare the commands, the do_*.py carry them out, main.py reads the lines."""
