"""Control groups: a tree of groups of processes, what they may use, what they have used, how long they waited."""
