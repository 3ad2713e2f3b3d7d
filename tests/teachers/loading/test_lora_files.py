"""Files beside a fine-tune that are no configurations are named in one sentence."""

import pytest
import torch
from safetensors.torch import save_file

from teachers.describe import describe
from teachers.loading.lora_files import Lora, lora_hash

ADAPTER = {"base_model.model.conv_in.lora_A.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("text", ["[]", "5", "null", "{"])
def test_settings_of_an_adapter_are_a_json_object(text, tmp_path):
    save_file(ADAPTER, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json (must be a JSON object, got|is not valid JSON)"):
        lora_hash(Lora(str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"config\.json must be a JSON object, got list"),
        ("{", r"config\.json is not valid JSON"),
        ('{"architectures": 5}', "must be a UNet2DConditionModel, the unet of the teacher, got 5"),
        ('{"architectures": []}', r"must be a UNet2DConditionModel, the unet of the teacher, got \[\]"),
        ('{"cross_attention_dim": 1' + "0" * 12 + "}", r"cross_attention_dim in .*config\.json must be at most"),
    ],
)
def test_a_fine_tuned_network_has_a_usable_configuration(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        describe("pocket", loras=[Lora(str(tmp_path))])
    assert "\n" not in str(error.value) and "pocket" not in str(error.value)
