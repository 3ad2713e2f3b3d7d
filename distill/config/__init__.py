"""Recipes: the typed schema, reading and checking them, and finding installed plug-ins."""
