"""Teacher families: one short file for each kind of diffusers pipeline."""
