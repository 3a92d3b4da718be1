"""The handlers of the system calls, one family a file."""
