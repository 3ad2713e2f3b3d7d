"""`fewstep export RUN OUT`: half precision, shards, one file, kohya's LoRA keys, ONNX, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from distill.config.registry import TEACHERS, find
from distill.exporting.comfy import known_schedule, sigmas, workflow
from distill.exporting.formats import Form, convert, kohya_layout
from distill.exporting.model_card.front_ends import PLACEHOLDER, located
from distill.exporting.usage import usage_section
from teachers.loading.record import read_record
from tests.commands import fewstep
from tests.distill.exporting.test_every_export import METHODS, exported

SD = "Stable Diffusion 1.5"


@pytest.fixture(scope="module")
def student(teacher_of, tmp_path_factory):
    """The folder of an exported student of Stable Diffusion, with two steps."""
    run = tmp_path_factory.mktemp("formats") / "run"
    exported(run, teacher_of(SD), SD, METHODS["scm"])
    return run / "pipeline"


@pytest.mark.slow
def test_one_command_writes_a_half_precision_copy_in_shards(student, tmp_path, capsys):
    out = tmp_path / "half"
    assert fewstep("export", student, out, "--variant", "fp16", "--max-shard-size", "60KB") == 0
    assert f"written: {out}" in capsys.readouterr().out
    files = list((out / "unet").glob("*.fp16*.safetensors")) + list((out / "unet").glob("*fp16-*.safetensors"))
    assert len(set(files)) > 1
    pipe = DiffusionPipeline.from_pretrained(out, variant="fp16", torch_dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16
    assert read_record(out, complete=True)["timesteps"] == read_record(student)["timesteps"]
    loaded = f'from_pretrained("{PLACEHOLDER}", variant="fp16", torch_dtype=torch.float16)'
    assert loaded in (out / "README.md").read_text()
    assert f'UNet2DConditionModel.from_pretrained("{PLACEHOLDER}", variant="fp16"' in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_half_precision_copy_can_be_copied_in_either_precision(student, tmp_path):
    (half,) = convert(student, tmp_path / "half", "diffusers", Form(half=True))
    for name, how, variant in (("again", Form(half=True), "fp16"), ("plain", Form(), None)):
        (out,) = convert(half, tmp_path / name, "diffusers", how)
        assert (out / "unet" / f"diffusion_pytorch_model{'.fp16' if how.half else ''}.safetensors").is_file()
        card = (out / "README.md").read_text()
        assert card == (half / "README.md").read_text() if how.half else "fp16" not in card.split("## ")[1]
        pipe = DiffusionPipeline.from_pretrained(out, variant=variant)
        values = DiffusionPipeline.from_pretrained(half, variant="fp16").unet.state_dict()
        assert all(torch.equal(value, values[key]) for key, value in pipe.unet.state_dict().items())


@pytest.mark.slow
def test_half_precision_copy_of_an_uploaded_pipeline_keeps_its_samples_and_names_the_model(student, tmp_path):
    copy = shutil.copytree(student, tmp_path / "uploaded")
    (copy / "gallery").mkdir()
    (copy / "gallery" / "0.png").write_bytes(b"a picture")
    (copy / "README.md").write_text(located((copy / "README.md").read_text(), "me/student"))
    (out,) = convert(copy, tmp_path / "half", "diffusers", Form(half=True))
    assert 'from_pretrained("me/student", variant="fp16", torch_dtype=torch.float16' in (out / "README.md").read_text()
    assert (out / "gallery" / "0.png").read_bytes() == b"a picture"


@pytest.mark.slow
def test_a_single_file_without_a_workflow_is_not_written(teacher_of, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_of(SD), "export_schedule", "bent")  # other tests share the teacher
    exported(tmp_path / "run", teacher_of(SD), SD, METHODS["scm"], schedule="bent")
    with pytest.raises(ValueError, match="needs a native export"):
        convert(tmp_path / "run" / "pipeline", tmp_path / "student.safetensors", "single-file", Form())
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_student_with_edm_s_preconditioning_is_not_written_as_one_file(teacher_of, tmp_path):
    exported(tmp_path / "run", teacher_of("Playground 2.5"), "Playground 2.5", METHODS["dmd"])
    with pytest.raises(ValueError, match="--format single-file needs a teacher without EDM's preconditioning"):
        convert(tmp_path / "run" / "pipeline", tmp_path / "student.safetensors", "single-file", Form())
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert "single-file" not in (tmp_path / "run" / "pipeline" / "README.md").read_text()


@pytest.mark.slow
def test_one_command_writes_a_single_file_with_its_workflow(student, tmp_path, capsys):
    out = tmp_path / "student.safetensors"
    assert fewstep("export", student, out, "--format", "single-file") == 0
    assert len(capsys.readouterr().out.split("written: ")) == 3
    assert "model.diffusion_model.time_embed.0.weight" in load_file(out)
    nodes = json.loads((tmp_path / "student.comfyui.json").read_text())
    assert nodes["1"]["inputs"]["ckpt_name"] == "student.safetensors"
    assert nodes["5"]["inputs"]["sampler_name"] == "lcm" and nodes["7"]["inputs"]["cfg"] == 1.0
    assert len(nodes["6"]["inputs"]["sigmas"].split(", ")) == 3  # two steps, and zero


@pytest.mark.slow
def test_the_workflow_has_the_noise_levels_of_the_students_timesteps(student):
    pipe, record = DiffusionPipeline.from_pretrained(student), read_record(student)
    entry = record["calls"][-1]
    table = pipe.scheduler.alphas_cumprod.double()
    expected = [((1 - table[n]) / table[n]).sqrt().item() for n in record["timesteps"]]
    assert sigmas(pipe, record, entry) == pytest.approx([*expected, 0.0])
    bent = {key: value for key, value in record.items() if key != "timesteps"}
    with pytest.raises(ValueError, match="needs a native export"):
        workflow(pipe, bent, "student.safetensors")


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def with_schedule(student, **config):
    """A student's pipeline as that of a teacher with another noise schedule."""
    pipe = DiffusionPipeline.from_pretrained(student)
    pipe.scheduler = DDIMScheduler(**STABLE_DIFFUSION | config)
    return pipe


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({}, None),
        ({"prediction_type": "v_prediction"}, {"sampling": "v_prediction", "zsnr": False}),
        ({"prediction_type": "sample"}, {"sampling": "x0", "zsnr": False}),
        ({"rescale_betas_zero_snr": True}, {"sampling": "eps", "zsnr": True}),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            {"sampling": "v_prediction", "zsnr": True},
        ),
    ],
)
@pytest.mark.first_is_quick
def test_the_workflow_says_what_the_network_predicts_and_on_which_schedule(config, model, student):
    record = read_record(student) | {"timesteps": [999, 399]}
    nodes = workflow(with_schedule(student, **config), record, "student.safetensors")
    own = nodes.get("10", {"inputs": {"model": ["1", 0]}})["inputs"]
    assert own.pop("model") == ["1", 0] and own == (model or {})
    levels = [float(level) for level in nodes["6"]["inputs"]["sigmas"].split(", ")]
    assert levels[0] == pytest.approx(4518.76 if "rescale_betas_zero_snr" in config else 14.61, rel=1e-3)


@pytest.mark.parametrize(
    "config", [{"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "linear"}, {"num_train_timesteps": 500}]
)
@pytest.mark.first_is_quick
def test_front_ends_that_lack_the_teachers_schedule_are_named(config, student):
    pipe, record = with_schedule(student, **config), read_record(student) | {"timesteps": [399, 99]}
    with pytest.raises(ValueError, match="single-file needs a teacher with Stable Diffusion's noise schedule"):
        workflow(pipe, record, "student.safetensors")
    assert "single-file" in usage_section(record, StableDiffusionPipeline)
    assert "single-file" not in usage_section(record | {"own_schedule": True}, StableDiffusionPipeline)


def test_only_other_schedules_than_stable_diffusions_are_recorded(student):
    assert "own_schedule" not in read_record(student)
    assert known_schedule(DDIMScheduler(**STABLE_DIFFUSION).alphas_cumprod) == {"zsnr": False}
    assert known_schedule(DDIMScheduler().alphas_cumprod) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "single-file"), "need OUT"),
        (("x.ckpt", "--format", "single-file"), "OUT must be a .safetensors file"),
        (("x.safetensors", "--format", "lora"), "trained with memory.tier=lora"),
        (("x.safetensors", "--format", "single-file", "--max-shard-size", "1GB"), "needs --format diffusers"),
        (("x", "--max-shard-size", "0GB"), "--max-shard-size must be a whole number with KB, MB, GB or TB"),
        ((".", "--variant", "fp16"), "OUT must not exist yet"),
        (("x", "--max-shard-size", "large"), "--max-shard-size must be a whole number with KB, MB, GB or TB"),
        (("x", "--format", "onnx", "--variant", "fp16"), "cannot be combined with --format onnx"),
    ],
)
def test_impossible_forms_are_refused(arguments, message, student, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (student / "README.md").stat()
    assert fewstep("export", student, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    after = (student / "README.md").stat()
    if "lora" not in arguments:  # whether a student has a LoRA file is known after its export
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "the card was written"


def test_existing_files_are_not_overwritten(student, tmp_path):
    with pytest.raises(ValueError, match="OUT must not exist yet"):
        convert(student, tmp_path, "diffusers", Form())
    with pytest.raises(ValueError, match="OUT must be outside the exported pipeline"):
        convert(student, student / "half", "diffusers", Form())


@pytest.mark.slow
def test_kohyas_lora_keys_give_the_same_samples(folder_of, tmp_path):
    family, folder = folder_of(SD)
    teacher = find(TEACHERS, family).load(str(folder), torch.device("cpu"), torch.float32)
    teacher.enable_lora(4)
    stored = exported(tmp_path / "run", teacher, SD, METHODS["scm"])
    pipeline = tmp_path / "run" / "pipeline"
    convert(pipeline, tmp_path / "student.safetensors", "lora", Form())
    weights = load_file(tmp_path / "student.safetensors")
    assert {name.rpartition(".")[2] for name in weights} == {"weight", "alpha"}
    assert all(name.startswith("lora_unet_") for name in weights)
    assert "lora_unet_time_embedding_linear_1.lora_down.weight" in weights
    images = []
    for source in (pipeline / "lora", tmp_path / "student.safetensors"):
        pipe = StableDiffusionPipeline.from_pretrained(folder)
        pipe.scheduler = LCMScheduler.from_pretrained(pipeline, subfolder="scheduler")
        pipe.load_lora_weights(source)
        pipe.set_progress_bar_config(disable=True)
        call = stored["lora"]["calls"][-1]["call"]
        torch.manual_seed(0)
        rng = torch.Generator().manual_seed(0)
        images.append(pipe("a coat", **call, generator=rng, output_type="pt").images)
    assert (images[0] - images[1]).abs().max() < 1e-4


def test_lora_files_of_other_layouts_are_refused():
    with pytest.raises(ValueError, match="must have lora_A and lora_B"):
        kohya_layout({"unet.conv_in.lora.down.weight": torch.zeros(1, 1)})
    names = kohya_layout({"transformer.blocks.0.to_q.lora_A.weight": torch.zeros(2, 4)})
    assert set(names) == {"lora_transformer_blocks_0_to_q.lora_down.weight", "lora_transformer_blocks_0_to_q.alpha"}


def sample_onnx(folder, call, noises, scheduler):
    """What a pipeline of ONNX models does in a call without guidance, with onnxruntime and numpy."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers import CLIPTokenizer

    def run(name, **inputs):
        session = onnxruntime.InferenceSession(str(folder / name / "model.onnx"), providers=["CPUExecutionProvider"])
        return session.run(None, {key: np.asarray(value) for key, value in inputs.items()})[0]

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(["a coat"], padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    text = run("text_encoder", input_ids=np.array(ids, dtype=np.int64))
    scheduler.set_timesteps(**call)
    x = noises[0]
    for i, t in enumerate(scheduler.timesteps):
        output = run("unet", sample=x, timestep=np.array([float(t)], dtype=np.float32), encoder_hidden_states=text)
        denoised = scheduler.step(torch.from_numpy(output), t, torch.from_numpy(x), return_dict=False)[1].numpy()
        last = i + 1 == len(scheduler.timesteps)
        level = None if last else scheduler.alphas_cumprod[scheduler.timesteps[i + 1]].item()
        x = denoised if last else np.float32(level**0.5) * denoised + np.float32((1 - level) ** 0.5) * noises[i + 1]
    return run("vae_decoder", latent_sample=(x / np.float32(0.18)).astype(np.float32))


@pytest.mark.exhaustive
def test_onnx_models_give_the_same_images(student, tmp_path):
    pytest.importorskip("onnxscript")
    convert(student, tmp_path / "onnx", "onnx", Form())
    pipe, record = DiffusionPipeline.from_pretrained(student), read_record(student)
    pipe.set_progress_bar_config(disable=True)
    call = record["calls"][-1]["call"]
    rng = torch.Generator().manual_seed(0)
    expected = pipe("a coat", **call, generator=rng, output_type="pt").images.numpy()
    rng = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, 4, 8, 8, generator=rng).numpy() for _ in record["timesteps"]]
    by_timesteps = {"timesteps": call["timesteps"]} if "timesteps" in call else {"num_inference_steps": 2}
    image = sample_onnx(tmp_path / "onnx", by_timesteps, noises, LCMScheduler.from_config(pipe.scheduler.config))
    assert np.abs((image / 2 + 0.5).clip(0, 1) - expected).max() < 1e-3
