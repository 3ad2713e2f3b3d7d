"""Hostile model folders: each attack would write a file, the canary, if code of the folder ran.

Every folder of the table is refused with one sentence by every loader; those in `IGNORED` load, and their code never
runs.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Attack = Callable[[Path], None]
CANARY = "EXECUTED"  # in the folder above the model's
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def code(folder: Path) -> str:
    """Python source that writes the canary; also classes with the names that attacks ask for."""
    names = [
        "Evil",
        "EvilPipeline",
        "EvilConfig",
        "EvilModel",
        "EvilTokenizer",
        "UNet2DConditionModel",
        "CLIPTokenizer",
    ]
    classes = "".join(f"class {name}:\n    from_pretrained = classmethod(lambda *a, **k: None)\n" for name in names)
    return f"open({str(folder.parent / CANARY)!r}, 'w').write('x')\n{classes}def generate(**k): ...\n"


def executed(folder: Path) -> bool:
    """Whether the canary of a folder exists."""
    return (folder.parent / CANARY).exists()


class Bomb:
    """Creates the canary when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder.parent / CANARY)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def edit(file: Path, **values: Any) -> None:
    """Change entries of a JSON file, which need not exist."""
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stored | values))


def entry(name: str, library: Any, class_name: Any) -> Attack:
    """The index names a class, for which there is code at every place where a module could be looked for."""

    def attack(folder: Path) -> None:
        for place in (folder.parent, folder, folder / "unet", folder / "scheduler", folder / "tokenizer"):
            (place / "evil_mod.py").write_text(code(folder))
        edit(folder / "model_index.json", **{name: [library, class_name]})

    return attack


def index(**values: Any) -> Attack:
    """Other values in the index, with code in the folder."""

    def attack(folder: Path) -> None:
        for name in ("evil_mod", "pipeline", "EvilPipeline"):
            (folder / f"{name}.py").write_text(code(folder))
        edit(folder / "model_index.json", **values)

    return attack


def config(file: str, **values: Any) -> Attack:
    """Other values in a component's configuration, with code next to it."""

    def attack(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).with_name("evil_mod.py").write_text(code(folder))
        edit(folder / file, **values)

    return attack


def python(*files: str) -> Attack:
    """Files with code, which no index names."""

    def attack(folder: Path) -> None:
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(code(folder))

    return attack


def renamed(name: str) -> Attack:
    """A component whose name leads elsewhere."""

    def attack(folder: Path) -> None:
        shutil.copytree(folder / "unet", folder.parent / "outside")
        edit(folder / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})

    return attack


def sharded(weights: str, shard: str, names: str = "safetensors") -> Attack:
    """The weights are an index, which names a file outside the folder or a pickle."""

    def attack(folder: Path) -> None:
        file = folder / weights
        tensors = load_file(file)
        (folder / "sub").mkdir()
        target = Path(os.path.normpath(file.parent / shard.format(root=folder.parent)))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            save_file(tensors, target, {"format": "pt"})
        else:
            torch.save({"a": Bomb(folder)}, target)
        file.unlink()
        weight_map = dict.fromkeys(tensors, shard.format(root=folder.parent))
        stem = file.stem if names == "safetensors" else "pytorch_model"
        listed = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (file.parent / f"{stem}.{names}.index.json").write_text(json.dumps(listed))

    return attack


def pickled(weights: str, name: str, keep: bool = False) -> Attack:
    """Weights in a pickle that runs code; `keep` leaves the safetensors file beside it."""

    def attack(folder: Path) -> None:
        if not keep:
            (folder / weights).unlink()
        with (folder / weights).with_name(name).open("wb") as file:
            pickle.dump({"a": Bomb(folder)}, file)

    return attack


def zipped(weights: str, name: str) -> Attack:
    """The same in the format of torch.save."""

    def attack(folder: Path) -> None:
        (folder / weights).unlink()
        torch.save({"a": Bomb(folder)}, (folder / weights).with_name(name))

    return attack


def link(name: str) -> Attack:
    """A file or folder is a link to outside of the model's folder."""

    def attack(folder: Path) -> None:
        target = folder.parent / f"outside-{Path(name).name}"
        shutil.move(folder / name, target)
        (folder / name).symlink_to(target)

    return attack


def inner_link(folder: Path) -> None:
    (folder / "tokenizer" / "more").symlink_to(folder.parent)


def nested_pipeline(folder: Path) -> None:
    """A network that is itself a pipeline, whose class is in a file of its folder."""
    python("unet/evil_mod.py")(folder)
    edit(folder / "unet" / "model_index.json", _class_name=["evil_mod", "EvilPipeline"])
    edit(folder / "model_index.json", unet=["diffusers", "DiffusionPipeline"])


def auto_class(name: str, library: str, class_name: str, file: str) -> Attack:
    """The index names an automatic class, whose configuration names code."""

    def attack(folder: Path) -> None:
        keys = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
        config(file, auto_map=dict.fromkeys(keys, "evil_mod.EvilModel"))(folder)
        edit(folder / "model_index.json", **{name: [library, class_name]})

    return attack


MAP = {"AutoConfig": "evil_mod.EvilConfig", "AutoModel": "evil_mod.EvilModel"}
TOKENIZER_MAP = {"AutoTokenizer": ["evil_mod.EvilTokenizer", None]}
REFUSED: dict[str, Attack] = {
    # What the index names.
    "module beside the folder": entry("unet", "evil_mod", "Evil"),
    "module in the folder": entry("unet", "model.evil_mod", "Evil"),
    "os": entry("unet", "os", "system"),
    "subprocess": entry("unet", "subprocess", "Popen"),
    "builtins": entry("unet", "builtins", "eval"),
    "empty library": entry("unet", "", "Evil"),
    "torch": entry("unet", "torch.nn", "Linear"),
    "nested module of diffusers": entry("unet", "diffusers.models", "UNet2DConditionModel"),
    "nested module of transformers": entry("text_encoder", "transformers.models.clip", "CLIPTextModel"),
    "utilities of diffusers": entry("unet", "diffusers.utils.dynamic_modules_utils", "get_class_from_dynamic_module"),
    "module as a class": entry("unet", "diffusers", "utils"),
    "function as a class": entry("text_encoder", "transformers", "pipeline"),
    "class with a dot": entry("unet", "diffusers", "models.UNet2DConditionModel"),
    "class with a slash": entry("unet", "diffusers", "../evil_mod"),
    "library with a slash": entry("unet", "../evil_mod", "Evil"),
    "absolute library": entry("unet", "/tmp/evil_mod", "Evil"),
    "class imported by a pipeline module": entry("unet", "pipeline_utils", "Path"),
    "own package": entry("unet", "teachers.support.plugins", "EntryPoint"),
    "command of our own": entry("unet", "distill.cli", "main"),
    "scheduler that is a network": entry("scheduler", "diffusers", "UNet2DConditionModel"),
    "scheduler that is a tokenizer": entry("scheduler", "transformers", "CLIPTokenizer"),
    "scheduler elsewhere": entry("scheduler", "evil_mod", "Evil"),
    "tokenizer elsewhere": entry("tokenizer", "evil_mod", "EvilTokenizer"),
    "tokenizer that is a network": entry("tokenizer", "transformers", "CLIPTextModel"),
    "network that is a scheduler": entry("unet", "diffusers", "DDIMScheduler"),
    "network on onnx": entry("unet", "diffusers", "OnnxRuntimeModel"),
    "safety checker elsewhere": entry("safety_checker", "evil_mod", "Evil"),
    "feature extractor elsewhere": entry("feature_extractor", "os", "system"),
    "image encoder elsewhere": entry("image_encoder", "evil_mod", "Evil"),
    "component without a class": entry("unet", "evil_mod", None),
    "component of three": index(unet=["evil_mod", "evil_mod", "Evil"]),
    "component that is text": index(unet="os"),
    "component that is a mapping": index(unet={"evil_mod": 1, "Evil": 2}),
    "network that is a pipeline": nested_pipeline,
    "pipeline in a file": index(_class_name=["evil_mod", "EvilPipeline"]),
    "pipeline in pipeline.py": index(_class_name=["pipeline", "EvilPipeline"]),
    "pipeline with a dot": index(_class_name="evil_mod.EvilPipeline"),
    "pipeline that is a module": index(_class_name="evil_mod"),
    "custom pipeline": index(custom_pipeline="evil_mod"),
    "module key": index(_module="evil_mod"),
    "auto_map of the index": index(auto_map=MAP),
    "component outside": renamed("../outside"),
    "component in a folder": renamed("unet/evil"),
    "absolute component": renamed("/tmp/outside"),
    "component with a dot": renamed("unet.evil"),
    # Automatic classes and code in configurations.
    "AutoModel of diffusers": auto_class("unet", "diffusers", "AutoModel", "unet/config.json"),
    "AutoModel of transformers": auto_class("text_encoder", "transformers", "AutoModel", "text_encoder/config.json"),
    "AutoTokenizer": auto_class("tokenizer", "transformers", "AutoTokenizer", "tokenizer/tokenizer_config.json"),
    "auto_map of the network": config("unet/config.json", auto_map=MAP),
    "auto_map of the autoencoder": config("vae/config.json", auto_map={"AutoModel": "evil_mod.EvilModel"}),
    "auto_map of the text encoder": config("text_encoder/config.json", auto_map=MAP),
    "auto_map of another repository": config("text_encoder/config.json", auto_map={"AutoModel": "o/r--evil_mod.Evil"}),
    "auto_map of the tokenizer": config("tokenizer/tokenizer_config.json", auto_map=TOKENIZER_MAP),
    "auto_map of the scheduler": config("scheduler/scheduler_config.json", auto_map=MAP),
    "trust of a config": config("text_encoder/config.json", trust_remote_code=True),
    "nested trust": config("text_encoder/config.json", text_config={"inner": [{"trust_remote_code": True}]}),
    "nested auto_map": config("text_encoder/config.json", text_config={"auto_map": MAP}),
    "class of a config in a file": config("unet/config.json", _class_name=["evil_mod", "Evil"]),
    "class of a config with a dot": config("unet/config.json", _class_name="evil_mod.Evil"),
    "class of a config that is a module": config("unet/config.json", _class_name="utils"),
    "class of a scheduler's config": config("scheduler/scheduler_config.json", _class_name="../evil_mod"),
    "vocabulary elsewhere": config("tokenizer/tokenizer_config.json", vocab_file="/etc/hostname"),
    "tokenizer file above": config("tokenizer/tokenizer_config.json", tokenizer_file="../model_index.json"),
    "versions of a tokenizer": config("tokenizer/tokenizer_config.json", fast_tokenizer_files=["../unet/config.json"]),
    "versions of a config": config("text_encoder/config.json", configuration_files=["../unet/config.json"]),
    "tokenizer class with a dot": config("tokenizer/tokenizer_config.json", tokenizer_class="evil_mod.Evil"),
    "tokenizer class that is a function": config("tokenizer/tokenizer_config.json", tokenizer_class="pipeline"),
    "processor class with a slash": config("tokenizer/tokenizer_config.json", processor_class="evil/Evil"),
    "architecture with a slash": config("text_encoder/config.json", model_type="../evil_mod"),
    "kernel of a repository": config("text_encoder/config.json", attn_implementation="evil/kernel"),
    "private kernel of a repository": config("text_encoder/config.json", _attn_implementation="evil/kernel@main:run"),
    "custom pipelines": config("text_encoder/config.json", custom_pipelines={"a": {"impl": "evil_mod.Evil"}}),
    "adapter": config("text_encoder/adapter_config.json", base_model_name_or_path="evil/base", peft_type="LORA"),
    "code as the library of the network": python("unet/diffusers.py"),
    "code as the library of the tokenizer": python("tokenizer/transformers.py"),
    "code as the library of the scheduler": python("scheduler/diffusers.py"),
    # Files outside the folder.
    "an index that is a list": lambda folder: (folder / f"{UNET}.index.json").write_text("[]"),
    "an index without shards": lambda folder: (folder / f"{UNET}.index.json").write_text("{}"),
    "shard above": sharded(UNET, "../../outside.safetensors"),
    "absolute shard": sharded(UNET, "{root}/outside.safetensors"),
    "shard in a folder": sharded(UNET, "sub/outside.safetensors"),
    "shard of the text encoder above": sharded(TEXT, "../../outside.safetensors"),
    "shard of the text encoder in a folder": sharded(TEXT, "../sub/outside.safetensors"),
    "linked network": link("unet"),
    "linked weights": link(UNET),
    "linked weights of the text encoder": link(TEXT),
    "linked config": link("vae/config.json"),
    "linked vocabulary": link("tokenizer/tokenizer.json"),
    "linked index": link("model_index.json"),
    "linked folder in a component": inner_link,
    # Pickles.
    "pickled network": pickled(UNET, "diffusion_pytorch_model.bin"),
    "pickled text encoder": pickled(TEXT, "pytorch_model.bin"),
    "zipped network": zipped(UNET, "diffusion_pytorch_model.bin"),
    "zipped text encoder": zipped(TEXT, "pytorch_model.bin"),
    "pickle called safetensors": pickled(TEXT, "model.safetensors"),
    "shard that is a pickle": sharded(TEXT, "pytorch_model.bin"),
    "pickled shard of a pickled index": sharded(TEXT, "pytorch_model.bin", "bin"),
}
IGNORED: dict[str, Attack] = {
    "code beside the index": python("pipeline.py", "__init__.py", "EvilPipeline.py", "sitecustomize.py", "setup.py"),
    "code beside the networks": python("unet/unet.py", "unet/__init__.py", "text_encoder/modeling_evil.py"),
    "code for generation": python("text_encoder/custom_generate/generate.py"),
    "code with the names of libraries": python("torch.py", "diffusers.py", "json.py"),
    "pickle beside safetensors": pickled(UNET, "diffusion_pytorch_model.bin", keep=True),
    "pickles of other tools": pickled(TEXT, "training_args.pt", keep=True),
}
