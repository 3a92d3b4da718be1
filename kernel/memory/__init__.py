"""KV memory: frames, page tables, names of prefixes; and the models' weights."""
