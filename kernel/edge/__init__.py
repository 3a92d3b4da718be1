"""The kernel's edge: all code that touches a socket, a clock, a process or a file."""
