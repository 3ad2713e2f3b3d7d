"""The files of a run that evaluations read."""

RECIPE, HISTORY, LOG = "recipe.yaml", "history.jsonl", "log.jsonl"
