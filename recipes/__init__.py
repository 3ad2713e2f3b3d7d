"""The shipped recipes: one YAML file for each run, documented by its first comment."""
