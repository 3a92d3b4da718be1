"""The kernel's edge: everything that touches a socket, a clock, a process or a file."""
