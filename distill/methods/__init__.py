"""Distillation methods and the parts that they share: losses, tangents, discriminators, compilation."""
