"""What a student learns from: prompts, images, encoded shards, random draws and teacher pairs."""
