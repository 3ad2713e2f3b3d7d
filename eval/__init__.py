"""One harness that judges teachers and students alike. It sees finished diffusers pipelines and nothing of training."""
