"""A trained student as a diffusers pipeline: the folder, its model card, and the Hugging Face Hub."""
