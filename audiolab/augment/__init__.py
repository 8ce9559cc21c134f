"""Augmentations: drawing parameters is separate from applying them."""
