"""Finding and loading pipelines and prompts."""
