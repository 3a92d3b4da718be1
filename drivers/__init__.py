"""Device drivers: each is a program of its own, `python -m llmasos.drivers.host KIND`."""
