"""The kernel's structs: processes, devices, images, requests."""
