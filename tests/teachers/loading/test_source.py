"""Loading weights from folders, single files and the Hub, and the one-line error of each failure."""

import json
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from teachers.describe import describe
from teachers.families.dit import DiT
from teachers.families.pixart import PixArt
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.source import load_pipeline

CPU = torch.device("cpu")

# Names of weights in diffusers and in the original Stable Diffusion files, for the tiny pipeline.
UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"^down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"^down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"^down_blocks\.1\.attentions\.0": "input_blocks.3.1",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0",
    r"^up_blocks\.0\.attentions\.(\d)": r"output_blocks.\1.1",
    r"^up_blocks\.0\.upsamplers\.0": "output_blocks.1.2",
    r"^up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"^up_blocks\.1\.resnets\.1": "output_blocks.3.0",
}
RESNET = {
    r"\bnorm1\b": "in_layers.0",
    r"\bconv1\b": "in_layers.2",
    r"\btime_emb_proj\b": "emb_layers.1",
    r"\bnorm2\b": "out_layers.0",
    r"\bconv2\b": "out_layers.3",
    r"\bconv_shortcut\b": "skip_connection",
}
VAE = {
    r"down_blocks\.(\d)\.resnets\.0": r"down.\1.block.0",
    r"down_blocks\.0\.downsamplers\.0": "down.0.downsample",
    r"up_blocks\.0\.resnets\.(\d)": r"up.1.block.\1",
    r"up_blocks\.1\.resnets\.(\d)": r"up.0.block.\1",
    r"up_blocks\.0\.upsamplers\.0": "up.1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}


def renamed(key, *tables):
    for table in tables:
        for pattern, replacement in table.items():
            key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module")
def pipe(tiny):
    return StableDiffusionPipeline.from_pretrained(tiny("Stable Diffusion 1.5")[1], safety_checker=None)


@pytest.fixture
def single_file(pipe, tmp_path):
    """The tiny pipeline as one file with the original names."""
    tensors = {}
    for key, value in pipe.unet.state_dict().items():
        name = renamed(key, UNET, RESNET) if "resnets" in key else renamed(key, UNET)
        tensors[f"model.diffusion_model.{name}"] = value.clone()
    tensors |= {f"first_stage_model.{renamed(k, VAE)}": v.clone() for k, v in pipe.vae.state_dict().items()}
    text = "cond_stage_model.transformer.text_model."
    tensors |= {text + key.removeprefix("text_model."): v.clone() for key, v in pipe.text_encoder.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def copy_configuration(file, folder):
    """Copy the pipeline in `folder` without weights next to the single file `file`."""
    shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.slow
def test_single_file_has_the_weights_of_the_folder(single_file, pipe, tiny):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    teacher = StableDiffusion.load(str(single_file), CPU)
    parts = {"unet": teacher.stock, "vae": teacher.stock, "text_encoder": teacher.text_pipeline()}
    for name, stock in parts.items():
        actual, expected = stock.components[name].state_dict(), pipe.components[name].state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)


def check_one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400


def test_single_file_of_another_family_raises_an_error(single_file, tiny):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    with pytest.raises(ValueError, match="StableDiffusionPipeline; this family takes PixArt") as error:
        PixArt.load(str(single_file), CPU)
    check_one_line(error)


def test_single_file_of_a_family_without_support_raises_an_error(single_file, tiny):
    copy_configuration(single_file, tiny("DiT")[1])
    with pytest.raises(ValueError, match="DiTPipeline cannot be loaded from a single file") as error:
        DiT.load(str(single_file), CPU)
    check_one_line(error)


def add_tensors(file, tensors):
    save_file(load_file(file) | tensors, file)


def use_scheduler(file, scheduler):
    """Make `scheduler` that of the configuration next to `file`."""
    index = file.with_suffix("") / "model_index.json"
    values = json.loads(index.read_text()) | {"scheduler": ["diffusers", type(scheduler).__name__]}
    index.write_text(json.dumps(values))
    scheduler.save_pretrained(index.parent / "scheduler")


@pytest.mark.slow
def test_markers_in_a_single_file_override_its_configuration(single_file, tiny, logged):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    add_tensors(single_file, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    denoiser = StableDiffusion.load(str(single_file), CPU).denoiser
    assert denoiser.prediction == "v_prediction"
    assert denoiser.path.alphas_cumprod[-1] == 0
    assert "override the scheduler of its configuration: prediction_type=v_prediction" in "\n".join(logged)
    text = describe(str(single_file))
    assert "predicts   v_prediction" in text and "t_max = 1.5708" in text


@pytest.mark.slow
def test_markers_that_agree_with_the_configuration_change_nothing(single_file, tiny, logged):
    copy_configuration(single_file, tiny("Stable Diffusion 2.1 (v, zero SNR)")[1])
    add_tensors(single_file, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    assert "v_prediction" in describe(str(single_file))
    assert "override" not in "\n".join(logged)


@pytest.mark.parametrize(
    ("markers", "scheduler", "match"),
    [
        (("ztsnr",), DDIMScheduler(), "zero terminal SNR"),
        (("v_pred", "ztsnr"), PNDMScheduler(), "marker ztsnr, .* which PNDMScheduler does not support; use DDIM"),
        (("edm_mean", "edm_std"), DDIMScheduler(), "has an EDM schedule"),
    ],
)
@pytest.mark.first_is_quick
def test_markers_that_cannot_be_followed_are_refused_alike(markers, scheduler, match, single_file, tiny):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    use_scheduler(single_file, scheduler)
    add_tensors(single_file, {name: torch.tensor([0.5]) for name in markers})
    for read in (lambda path: StableDiffusion.load(path, CPU), describe):
        with pytest.raises(ValueError, match=match) as error:
            read(str(single_file))
        check_one_line(error)


@pytest.mark.slow
def test_single_file_with_adapters_or_nan_raises_an_error_with_the_parameter(single_file, tiny):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    tensors = load_file(single_file)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    save_file(tensors | {key: torch.full_like(tensors[key], float("nan"))}, single_file)
    with pytest.raises(ValueError, match=r"to_q.weight that are infinite or not a number"):
        StableDiffusion.load(str(single_file), CPU)
    renamed_key = key.replace("to_q.weight", "to_q.base_layer.weight")
    save_file({renamed_key if k == key else k: v for k, v in tensors.items()}, single_file)
    with pytest.raises(ValueError, match="has no weights for a component of its configuration") as error:
        StableDiffusion.load(str(single_file), CPU)
    check_one_line(error)


@pytest.mark.slow
def test_incomplete_single_file_raises_an_error_with_its_name(single_file, tiny):
    copy_configuration(single_file, tiny("Stable Diffusion 1.5")[1])
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, single_file)
    with pytest.raises(ValueError, match=re.escape(str(single_file))) as error:
        StableDiffusion.load(str(single_file), CPU)
    check_one_line(error)


def test_corrupt_weights_raise_an_error_with_the_file(tiny, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny("Stable Diffusion 1.5")[1], folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])  # an incomplete download
    with pytest.raises(
        ValueError, match=r"unet/diffusion_pytorch_model\.safetensors are corrupt or incomplete"
    ) as error:
        StableDiffusion.load(str(folder), CPU)
    check_one_line(error)


def test_pickled_weights_are_not_loaded(tiny, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny("Stable Diffusion 1.5")[1], folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="has no safetensors weights") as error:
        StableDiffusion.load(str(folder), CPU)
    check_one_line(error)
    with pytest.raises(ValueError, match="got another kind of file"):
        StableDiffusion.locate(str(folder / "unet" / "diffusion_pytorch_model.bin"))


def test_invalid_index_raises_an_error(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON") as error:
        StableDiffusion.load(str(tmp_path), CPU)
    check_one_line(error)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no _class_name"):
        StableDiffusion.load(str(tmp_path), CPU)


class Hub(BaseHTTPRequestHandler):
    """A Hub without repositories; those of the owner `gated` require accepting terms."""

    def do_HEAD(self):
        gated = self.path.startswith("/gated/")
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub_port(monkeypatch, server.server_address[1])
    yield
    server.shutdown()
    server.server_close()


def use_hub_port(monkeypatch, port):
    """Make the Hub client connect to a port of this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize(
    ("name", "match"), [("gated/model", "gated: accept its terms"), ("nobody/nothing", "the Hub has no nobody/nothing")]
)
@pytest.mark.slow
def test_errors_of_the_hub_are_one_line(hub, name, match):
    with pytest.raises(ValueError, match=match) as error:
        load_pipeline((StableDiffusionPipeline,), name)
    check_one_line(error)


@pytest.mark.slow
def test_missing_network_is_a_one_line_error(monkeypatch):
    use_hub_port(monkeypatch, 9)  # nothing listens there
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries five times
    with pytest.raises(
        ValueError, match="the Hub cannot be reached and there is no complete copy of some/model"
    ) as error:
        load_pipeline((StableDiffusionPipeline,), "some/model")
    check_one_line(error)


def test_missing_network_for_a_single_file_names_the_configuration_folder(single_file, monkeypatch):
    use_hub_port(monkeypatch, 9)
    with pytest.raises(ValueError, match="there is no configuration folder") as error:
        StableDiffusion.load(str(single_file), CPU)
    check_one_line(error)
