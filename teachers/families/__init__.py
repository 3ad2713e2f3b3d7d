"""Teacher families: one file for each kind of diffusers pipeline."""
