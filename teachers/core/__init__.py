"""TrigFlow time, noise paths, denoisers, the teacher contract, and sampling."""
