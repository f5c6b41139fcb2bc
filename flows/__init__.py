"""What runs in which order: no tensor, no file system."""
