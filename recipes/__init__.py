"""Recipes: one YAML file a run, its launch command on the first line."""
