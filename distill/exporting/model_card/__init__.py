"""The parts of the model card of an exported pipeline."""
