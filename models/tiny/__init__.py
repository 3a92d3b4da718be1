"""The embedded model `tiny`: its files, and the recipe and evaluation that belong to it."""
