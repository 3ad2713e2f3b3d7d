"""Two evaluations give the same figures whatever noise a pipeline draws by itself; class numbers are checked."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, StableDiffusionPipeline

from eval.pipelines.generate import arguments, seeded
from eval.pipelines.loading import load_pipeline
from teachers.media import ANY_IMAGE
from tests.commands import eval_main, fewstep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """Function dit(classes) -> the folder of a DiT with so many classes."""

    def build(classes):
        folder = tmp_path_factory.mktemp("dit") / str(classes)
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=classes,
        )
        vae = AutoencoderKL(
            latent_channels=4,
            mid_block_add_attention=False,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        names = {"0": "tench", "1": "goldfish"}
        pipeline = DiTPipeline(network, vae, DDIMScheduler(clip_sample=False), names)
        pipeline.register_to_config(id2label=names)  # as in the published model_index.json
        pipeline.save_pretrained(folder)
        return folder

    return build


@pytest.mark.parametrize("prompt", ["1000", "1500", "no such fish", "-1", ""])
@pytest.mark.sampled
@pytest.mark.slow
def test_class_numbers_out_of_range_are_refused(dit, prompt, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text(f"{prompt or '1.5'}\n1\n")
    np.savez(tmp_path / "ref.npz", mu=np.full(192, 0.5), sigma=np.eye(192) / 50)
    words = [dit(1000), "--samples", "4", "--prompts", tmp_path / "prompts.txt", "--features", "pixels"]
    words += ["--reference", tmp_path / "ref.npz", "--steps", "1", "--out", tmp_path / "report"]
    assert eval_main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert "must be a number from 0 to 999 or the name of a class" in error


@pytest.mark.slow
def test_guidance_of_a_dit_of_ten_classes_uses_its_own_null_class(dit):
    """diffusers passes class 1000 as the null class, which is out of range for the embedding of ten classes."""
    pipe = load_pipeline(dit(10), CPU, torch.float32)
    seen = []
    embedder = next(m for m in pipe.transformer.modules() if type(m).__name__ == "LabelEmbedding")
    embedder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    pipe(**arguments(pipe, {"num_inference_steps": 1, "guidance_scale": 4.0}, ["3", "goldfish"], [0, 1]))
    assert seen[0].tolist() == [3, 1, 10, 10]


class Restless(StableDiffusionPipeline):
    """A pipeline that ignores its generator and draws from every global generator."""

    def __call__(self, *args, **kwargs):
        kwargs.pop("generator", None)
        shape = kwargs["latents"].shape
        noise = torch.randn(shape) + float(np.random.randn()) + random.random()
        return super().__call__(*args, **kwargs | {"latents": noise})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_is_reproducible_for_a_pipeline_with_noise_of_its_own(text_pipeline, seed):
    pipe = Restless(**load_pipeline(text_pipeline, CPU, torch.float32).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def batch(indices):
        torch.randn(3), np.random.rand(2), random.random()  # what other code draws in between
        ready = arguments(StableDiffusionPipeline(**pipe.components), {"num_inference_steps": 1}, ["a", "b"], indices)
        ready.pop("generator")
        with seeded(indices, seed):
            return ANY_IMAGE.received(pipe(**ready))

    assert torch.equal(batch([0, 1]), batch([0, 1]))
    assert not torch.equal(batch([0, 1]), batch([2, 3]))


def test_global_generators_continue_after_a_seeded_batch():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with seeded([0, 1]):
        torch.rand(9), np.random.rand(9), random.random()
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("entry", [["stable_diffusion", "StableDiffusionSafetyChecker"], [None, None]])
@pytest.mark.sampled
def test_pipelines_without_the_folder_of_their_safety_checker_load(text_pipeline, tmp_path, entry):
    folder = tmp_path / "pipeline"
    shutil.copytree(text_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = entry
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"] if entry[0] else entry
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(folder, CPU, torch.float32).safety_checker is None
    from teachers.families.stable_diffusion import StableDiffusion

    assert StableDiffusion.load(str(folder), CPU).condition(["a coat"])
    assert fewstep("describe", folder) == 0


@pytest.mark.slow
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_everywhere_with_one_sentence(
    text_pipeline, tmp_path, capsys
):
    folder = tmp_path / "pipeline"
    pipe = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None)
    pipe.tokenizer.add_tokens(["<my-cat>"])
    pipe.save_pretrained(folder)
    from teachers.families.stable_diffusion import StableDiffusion

    with pytest.raises(ValueError, match="<my-cat>") as trained:
        StableDiffusion.load(str(folder), CPU)
    with pytest.raises(ValueError, match="<my-cat>") as judged:
        load_pipeline(folder, CPU, torch.float32)
    capsys.readouterr()  # progress bars of loading
    assert fewstep("describe", folder) == 2
    assert capsys.readouterr().err == f"error: {trained.value}\n" and str(trained.value) == str(judged.value)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.save_pretrained(tmp_path / "widened")
    assert StableDiffusion.load(str(tmp_path / "widened"), CPU).condition(["a photo of <my-cat>"])
