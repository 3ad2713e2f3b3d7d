"""Feature extractors for images, and folders of images as their input."""
