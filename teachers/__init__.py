"""Teachers: diffusers pipelines of many families, in the canonical time of TrigFlow."""
