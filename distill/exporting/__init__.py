"""Exporting a trained student: the diffusers pipeline, its model card, and the upload to the Hugging Face Hub."""
