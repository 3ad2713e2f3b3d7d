"""Distillation methods and the parts that they share: losses, Jacobian-vector products, discriminators, compilation."""
