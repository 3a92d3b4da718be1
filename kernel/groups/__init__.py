"""Control groups: a tree of groups of processes; what each may use, has used, and how long it has waited."""
