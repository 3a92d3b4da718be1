"""Which processes run next: policies (pure objects), the run queue of a device, and the plan of a step."""
