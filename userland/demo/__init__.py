"""The guided tour: it does each thing the system promises, shows it, and checks it.

`tour.py` is the programme, `stage.py` how it is told, and each other module one act. No act trusts what it shows: what it
claims is looked up in the kernel's own counters or compared token for token, and a claim that does not hold ends the tour
with status 1.
"""
