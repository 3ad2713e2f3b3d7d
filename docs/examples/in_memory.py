import torch
from diffusers import DDPMScheduler, UNet2DModel

import distill

unet = UNet2DModel(  # your trained network
    sample_size=16,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
images = torch.rand(256, 1, 16, 16) * 2 - 1  # your data, (N, C, H, W) in [-1, 1]

teacher = distill.load_teacher(unet, DDPMScheduler(), sigma_data=0.5)
recipe = distill.Recipe(
    name="in-memory",
    teacher=distill.TeacherRecipe(),
    method={"name": "scm"},
    optimizers={"student": distill.OptimizerRecipe(lr=3e-4, schedule="cosine")},
    train=distill.TrainRecipe(steps=1000, batch_size=64),
)
folder = distill.train(recipe, teacher, latents=images)
print(folder)
