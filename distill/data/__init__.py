"""The data of a run: prompts, images, encoded shards, random numbers and teacher pairs."""
