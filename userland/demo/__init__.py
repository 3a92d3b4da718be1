"""The guided tour: it does each thing that the system promises, shows it, and checks it.

`tour.py` is the programme, `stage.py` the presentation, `crew.py` the agents; `acts.py` and `shares.py` have the acts. No
act trusts what it shows: it looks its claims up in the kernel's own counters or compares them token for token, and a
claim that does not hold ends the tour with status 1.
"""
