"""What a new kernel makes of the journal."""
