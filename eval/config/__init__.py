"""The options of a comparison and evaluation protocols. Nothing here imports torch."""
