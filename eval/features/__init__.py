"""Feature extractors, and reading folders of images for them."""
