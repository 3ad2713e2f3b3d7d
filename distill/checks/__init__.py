"""Checks of teacher families and exported students against stock diffusers, for `fewstep check`."""
