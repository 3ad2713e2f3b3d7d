import torch

from distill import DMD, load_teacher
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom

teacher = load_teacher("pocket")
method = DMD(teacher, guidance=2.0, options=DMD.Options(timesteps=(700,)))
rng = BatchRandom(("a seed", 0), 0, 8, 8, torch.device("cpu"))  # rows 0 to 7 of a batch of 8
batch = Batch(teacher.condition(["a photo of a bag"] * 8), rng)
loss, logs = method("student", batch, step=0)
loss.backward()
print(loss.item(), {name: value.item() for name, value in logs.items()})
