"""Device drivers: each is a program of its own, `python -m drivers.host KIND`."""
