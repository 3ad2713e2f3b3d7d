"""The contents of teachers: any change of what loading or encoding reads changes a key, and nothing else does."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teachers.families.analytic import Analytic
from teachers.loading.contents import encoder_key, pipeline_contents, without_weights
from teachers.loading.registry import installed, load_teacher
from teachers.support.keys import key
from tests.teachers.tiny_pipelines import BUILDERS

NAMES = sorted(BUILDERS)
TEXT, IMAGES = ("text_encoder", "tokenizer"), ("vae",)
PROPERTY = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def keys_of(name: str, folder: Path) -> tuple[str, str, str]:
    """The keys of the whole teacher, of its prompts' conditions and of its latents."""
    family = installed()[name]
    found = family.stored_contents(family.locate(str(folder)))
    return key(found), *(key(without_weights(found, family.encoder_components[m])) for m in ("condition", "encode"))


def change(file: Path, draw) -> None:
    """One change: of one entry of a JSON file, else of one byte; size permitting, the file looks as before."""
    before, original = file.stat(), file.read_bytes()
    values = json.loads(original) if file.suffix == ".json" else None
    if isinstance(values, dict) and values:
        entry = draw(st.sampled_from(sorted(values)))
        values[entry] = f"{values[entry]} changed"
        file.write_text(json.dumps(values))
    else:
        place = draw(st.integers(0, len(original) - 1))
        file.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@PROPERTY
@given(data=st.data())
@pytest.mark.exhaustive
def test_any_single_change_of_a_stored_teacher_changes_the_keys_of_its_readers(tiny, data):
    family, folder = tiny(data.draw(st.sampled_from(NAMES)))
    before = keys_of(family, folder)
    file = data.draw(st.sampled_from(sorted(f for f in folder.rglob("*") if f.is_file())))
    original, component = file.read_bytes(), file.relative_to(folder).parts[0]
    try:
        change(file, data.draw)
        whole, condition, encode = keys_of(family, folder)
    finally:
        file.write_bytes(original)
    weights = file.suffix == ".safetensors"
    assert whole != before[0]
    assert (condition != before[1]) == (not weights or component.startswith(TEXT))
    assert (encode != before[2]) == (not weights or component.startswith(IMAGES))
    assert keys_of(family, folder) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.first_is_quick
def test_copies_touched_files_and_documents_change_nothing(tiny, tmp_path, name):
    family, folder = tiny(name)
    copy = tmp_path / "another name"
    shutil.copytree(folder, copy)
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    (copy / "README.md").write_text("a card")
    (copy / "distill.json").write_text("{}")
    (copy / "samples").mkdir()
    (copy / "samples" / "0.png").write_bytes(b"")
    (copy / ".cache").mkdir()
    assert keys_of(family, copy) == keys_of(family, folder)


def test_adapters_and_added_tokens_in_a_component_count(tiny, tmp_path):
    family, folder = tiny("Stable Diffusion 1.5")
    shutil.copytree(folder, tmp_path / "t")
    before = keys_of(family, tmp_path / "t")
    (tmp_path / "t/text_encoder/adapter_model.safetensors").write_bytes(b"x")
    after = keys_of(family, tmp_path / "t")
    assert after[0] != before[0] and after[1] != before[1]
    (tmp_path / "t/tokenizer/added_tokens.json").write_text('{"<coat>": 99}')
    assert keys_of(family, tmp_path / "t")[1] != after[1]


def test_a_linked_component_counts(tiny, tmp_path):
    family, folder = tiny("Stable Diffusion 1.5")
    shutil.copytree(folder, tmp_path / "t")
    shutil.move(tmp_path / "t/vae", tmp_path / "vae")
    (tmp_path / "t/vae").symlink_to(tmp_path / "vae")
    before = keys_of(family, tmp_path / "t")
    assert before == keys_of(family, folder)
    config = tmp_path / "vae/config.json"
    config.write_text(config.read_text().replace("0.18", "0.19"))
    assert keys_of(family, tmp_path / "t")[2] != before[2]


def test_a_single_file_counts_with_the_folder_next_to_it(tiny, tmp_path):
    _, folder = tiny("Stable Diffusion 1.5")
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t.safetensors").write_bytes(b"weights")
    path = str(tmp_path / "t.safetensors")
    found = {key(pipeline_contents(path))}
    config = tmp_path / "t/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    found.add(key(pipeline_contents(path)))
    (tmp_path / "t.safetensors").write_bytes(b"Weights")
    found.add(key(pipeline_contents(path)))
    assert len(found) == 3
    before = pipeline_contents(path)
    shutil.copytree(tmp_path / "t", tmp_path / "renamed")
    shutil.copy(path, tmp_path / "renamed.safetensors")
    assert pipeline_contents(str(tmp_path / "renamed.safetensors")) == before


def test_names_on_the_hub_are_identified_by_their_snapshot(tiny, monkeypatch):
    _, folder = tiny("DiT")
    monkeypatch.setattr(DiffusionPipeline, "download", classmethod(lambda cls, path, **options: str(folder)))
    assert pipeline_contents("owner/name") == pipeline_contents(str(folder))


def test_components_that_are_not_loaded_do_not_count(tiny):
    _, folder = tiny("Stable Diffusion 1.5")
    assert not any(name.startswith("vae/") for name in pipeline_contents(str(folder), vae=None))


@pytest.mark.slow
def test_a_family_with_its_own_load_reads_every_file(tiny, tmp_path):
    kind = installed()["unconditional"]

    class Own(kind):
        @classmethod
        def load(cls, path, device, dtype=torch.float32, sigma_data=1.0):
            return kind.load(path, device, dtype, sigma_data)

    _, folder = tiny("unconditional UNet")
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t/table.npz").write_bytes(b"1")
    before = Own.stored_contents(str(tmp_path / "t"))
    assert "table.npz" in before and "table.npz" not in kind.stored_contents(str(tmp_path / "t"))
    # Its encoders may read any weights, until it declares which.
    teacher, other = Own.load(str(tmp_path / "t"), torch.device("cpu")), dict(before)
    teacher.__class__ = Own
    other["unet/diffusion_pytorch_model.safetensors"] = "other"
    assert encoder_key(teacher, before, "encode") != encoder_key(teacher, other, "encode")
    Own.encoder_components = {"encode": ("vae",)}
    assert encoder_key(teacher, before, "encode") == encoder_key(teacher, other, "encode")


def test_built_in_names_stand_for_themselves():
    assert Analytic.stored_contents("checkerboard") != Analytic.stored_contents("eight_gaussians")


# --- teachers in memory ---------------------------------------------------------------------------------------------


def in_memory(folder: Path, sigma_data: float = 1.0):
    return load_teacher(DiffusionPipeline.from_pretrained(folder), sigma_data=sigma_data)


def use(teacher) -> None:
    """Everything that a run does with a frozen teacher before it trains."""
    noise = torch.randn(2, *teacher.shape)
    prompts = ["0", "1"] if "DiT" in type(teacher).__name__ else ["a coat", "a bag"]
    cond = teacher.condition(prompts)
    teacher.velocity(noise, torch.ones(2), cond, 2.0)
    teacher.encode(teacher.decode(noise))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Stable Diffusion XL", "DiT", "Flux.1 dev", "Sana"])
@pytest.mark.sampled
def test_digests_do_not_change_with_use_and_are_those_of_another_copy(tiny, name):
    _, folder = tiny(name)
    teacher, again = in_memory(folder), in_memory(folder)
    before = teacher.digest()
    assert again.digest() == before
    with torch.no_grad():
        use(teacher)
    assert teacher.digest() == before
    assert in_memory(folder, 0.5).digest() != before


@pytest.mark.slow
def test_digest_does_not_change_when_the_autoencoder_overflows(tiny, logged):
    teacher = in_memory(tiny("Stable Diffusion 1.5")[1])
    teacher.stock.vae.bfloat16()
    before = teacher.digest()
    with torch.no_grad():
        teacher.encode(torch.full((1, *teacher.medium.shape), torch.inf))
    assert "the autoencoder overflows" in "\n".join(logged)
    assert teacher.digest() == before


def changed_parameter(teacher):
    next(reversed(list(teacher.stock.vae.parameters()))).data[0] += 1e-3


def changed_text_encoder(teacher):
    next(teacher.stock.text_encoder.parameters()).data[0] += 1e-3


def changed_network(teacher):
    next(teacher.denoiser.network.parameters()).data[0] += 1e-3


def changed_scaling(teacher):
    teacher.stock.vae.register_to_config(scaling_factor=0.2)


def changed_means(teacher):
    teacher.stock.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.5])


def changed_index(teacher):
    teacher.stock.register_to_config(force_zeros_for_empty_prompt=False)


def added_token(teacher):
    teacher.stock.tokenizer_2.add_tokens(["<coat>"])


def changed_length(teacher):
    teacher.stock.tokenizer.model_max_length = 5


def changed_schedule(teacher):
    teacher.denoiser.path.alphas_cumprod[3] += 1e-3


def changed_prediction(teacher):
    teacher.denoiser.prediction = "v_prediction"


@pytest.mark.parametrize(
    "edit",
    [
        changed_parameter,
        changed_text_encoder,
        changed_network,
        changed_scaling,
        changed_means,
        changed_index,
        added_token,
        changed_length,
        changed_schedule,
        changed_prediction,
    ],
)
@pytest.mark.slow
def test_any_change_in_memory_changes_the_digest(tiny, edit):
    _, folder = tiny("Stable Diffusion XL")
    teacher = in_memory(folder)
    before = teacher.digest()
    edit(teacher)
    assert teacher.digest() != before


@pytest.mark.slow
def test_a_loaded_teacher_that_was_changed_has_other_contents(tiny):
    """Its text encoders, which are loaded later, count as files."""
    family, folder = tiny("Stable Diffusion 1.5")
    teacher = installed()[family].load(str(folder), torch.device("cpu"))
    before = teacher.contents()
    assert before["text_encoder/model.safetensors"]
    changed_network(teacher)
    assert {name for name, value in teacher.contents().items() if before[name] != value} == {"in memory"}
