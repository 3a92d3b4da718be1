"""Weights in and out of a device's memory."""
