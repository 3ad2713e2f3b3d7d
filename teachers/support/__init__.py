"""Helpers without mathematics: files, errors, private APIs of dependencies."""
