"""Loading pipelines and prompts."""
