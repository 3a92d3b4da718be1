"""The models that come with the system."""
