"""Where a model's files are and what is in them: directories, hub repositories, single files, and their headers.

Drivers read models and userland reads their words, so both stand on this; it imports nothing of ours but errno. Nothing
here builds a network or needs torch.
"""
