"""The journal: the state that the next kernel needs to go on after this one's death."""
