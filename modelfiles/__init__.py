"""A model's files: where they are and what they hold. Directories, repositories of the hub, single files, and their
headers.

Drivers read models, and userland reads their vocabularies, so both stand on this; it imports nothing of this project but
the errno. Nothing here builds a network or needs torch.
"""
