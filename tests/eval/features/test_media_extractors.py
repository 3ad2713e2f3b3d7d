"""Feature extractors for clips and sounds. No published weights are on this machine: networks have random weights."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    RobertaTokenizer,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
)

from eval.config.media_names import MEDIA_FEATURES, media_feature_names
from eval.features.extractors import extractor
from eval.features.i3d import CLASSES, I3D, i3d_features, same_padding
from eval.features.light_features import motion_features, spectrum_features
from eval.features.media_extractors import media_extractor
from eval.features.media_models import ClapScorer, clap_audio
from eval.features.vggish import VGGish, examples, mel_filters, vggish_features
from eval.features.weight_files import load_weights
from eval.metrics.context import MetricContext
from eval.metrics.registry import installed_metrics
from teachers.media import Audio, Image, Video
from teachers.media.resampling import resample

CLIP = Video(frames=9, height=16, width=16, rate=8)
SOUND = Audio(channels=1, samples=8000, rate=8000)
CPU = torch.device("cpu")


def clips(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *CLIP.shape, generator=torch.Generator().manual_seed(seed))


def sounds(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *SOUND.shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def tone(frequency: float, rate: int = 8000, samples: int = 8000, level: float = 0.5) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * frequency * torch.arange(samples).double() / rate).float()[None, None]


def test_names_name_their_medium():
    assert media_feature_names("video") == ["motion", "pocket-video", "frames=FEATURES", "i3d=FILE", "videomae=FOLDER"]
    assert media_feature_names("audio") == ["spectrum", "pocket-audio", "vggish=FILE", "clap=FOLDER"]
    assert {features.medium for features in MEDIA_FEATURES.values()} == {"video", "audio"}


@pytest.mark.parametrize(
    ("name", "medium", "message"),
    [
        (
            "motion",
            SOUND,
            r'the features "motion" are not for sounds; choose one of spectrum, pocket-audio, vggish=FILE, clap=FOLDER',
        ),
        ("spectrum", CLIP, r'the features "spectrum" are not for clips; choose one of motion, pocket-video, frames='),
        ("motion", Image(8, 8), r'the features "motion" are not for images'),
        ("clean", CLIP, r'unknown feature extractor "clean" for clips; choose one of motion'),
        ("i3d", CLIP, r'the features "i3d" must be given as i3d=FILE, got "i3d"'),
        ("motion=x", CLIP, r'the features "motion" must be given as motion, got "motion=x"'),
        ("i3d=nowhere.pt", CLIP, r"there is no file nowhere\.pt; expected the weights of I3D"),
        ("vggish=nowhere.pt", SOUND, r"there is no file nowhere\.pt; expected the weights of VGGish"),
        ("clap=/nowhere/clap", SOUND, r"transformers could not load /nowhere/clap .* as in clap=FOLDER"),
        ("videomae=/nowhere/videomae", CLIP, r"transformers could not load /nowhere/videomae .* as in videomae=FOLDER"),
        ("frames=nothing", CLIP, r'unknown feature extractor "nothing"'),
    ],
)
def test_wrong_names_are_refused(name, medium, message):
    with pytest.raises(ValueError, match=message):
        media_extractor(name, medium)


@pytest.mark.parametrize(
    ("name", "medium", "samples", "message"),
    [
        ("motion", CLIP, torch.rand(2, 3, 16, 16), r'the features "motion" are for clips, got images of shape \(2, 3'),
        ("motion", CLIP, torch.rand(2, 1, 8000), r"are for clips, got sounds of shape"),
        ("spectrum", SOUND, torch.rand(2, 3, 16, 16), r'the features "spectrum" are for sounds, got images of shape'),
        ("spectrum", SOUND, torch.rand(8000), r"are for sounds, got a tensor of shape"),
        ("motion", CLIP, torch.rand(2, 3, 8, 16, 16), r"clips must have the shape \(B, 3, 9, 16, 16\), got"),
        ("spectrum", SOUND, torch.rand(2, 2, 8000), r"sounds must have the shape \(B, 1, 8000\), got"),
    ],
)
def test_samples_of_another_medium_are_refused(name, medium, samples, message):
    with pytest.raises(ValueError, match=message):
        media_extractor(name, medium)(samples)


@pytest.mark.parametrize(("name", "medium", "samples"), [("motion", CLIP, clips()), ("spectrum", SOUND, sounds())])
def test_light_features_mark_samples_that_are_not_finite(name, medium, samples):
    extract = media_extractor(name, medium)
    samples = samples.clone()
    samples[1].view(-1)[5] = math.nan
    features = extract(samples)
    assert features.shape == (3, extract.dimensions)
    assert features.dtype == torch.float32
    assert features[1].isnan().all()
    torch.testing.assert_close(features[[0, 2]], extract(samples[[0, 2]]))


def test_names_of_figures_name_the_network():
    assert media_extractor("motion", CLIP).figure(2048) == "Frechet distance (motion@2048)"
    assert (
        media_extractor("spectrum", SOUND).figure(100, 128) == "Frechet distance (spectrum@100), biased (<128 dimens"
        "ions)"
    )
    assert media_extractor("frames=pixels", CLIP).figure(2000) == "FVD-frames-pixels@2k"
    assert media_extractor("frames=pixels", CLIP).figure(100, 192) == "FVD-frames-pixels@100, biased (<192 dimensions)"


def test_motion_features_see_what_moves_and_where():
    still = torch.zeros(1, 3, 9, 16, 16)
    moving = still.clone()
    for frame in range(9):
        moving[:, :, frame, 0:2, frame : frame + 2] = 1  # along the upper edge
    features = motion_features(torch.cat([still, moving]))
    assert features.shape == (2, 960)
    changes = features[:, 768:].reshape(2, 3, 8, 8)
    assert (changes[0] == 0).all()
    assert (changes[1, :, 0].sum(dim=1) > 0).all()
    assert (changes[1, :, 1:] == 0).all()
    assert changes[1, 0, 0].argmax() < changes[1, 1, 0].argmax() < changes[1, 2, 0].argmax()


def test_motion_features_separate_clips_that_run_backwards():
    samples = clips()
    assert (motion_features(samples) - motion_features(samples.flip(2))).abs().max() > 0.1


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_motion_features_of_short_clips(frames):
    assert motion_features(torch.rand(2, 3, frames, 16, 16)).shape == (2, 960)


def test_spectrum_features_have_the_level_in_decibels():
    loud, soft = spectrum_features(tone(1000), 8000), spectrum_features(tone(1000, level=0.05), 8000)
    band = loud[0, :64].argmax()
    assert loud[0, band] - soft[0, band] == pytest.approx(1, abs=0.01)  # 20 dB
    assert spectrum_features(tone(3000), 8000)[0, :64].argmax() > band
    assert spectrum_features(torch.zeros(1, 1, 8000), 8000)[0].tolist() == pytest.approx([-5.0] * 64 + [0.0] * 64)


def test_spectrum_features_tell_steady_from_varying_sounds():
    steady = tone(1000)
    pulsed = steady * (torch.arange(8000) // 1000 % 2)
    difference = spectrum_features(pulsed, 8000)[0, 64:] - spectrum_features(steady, 8000)[0, 64:]
    assert difference.max() > 1


def test_features_of_frames_are_the_mean_over_frames():
    extract = media_extractor("frames=pixels", CLIP)
    samples = clips()
    images = extractor("pixels")
    expected = torch.stack([images(samples[:, :, frame]) for frame in range(9)]).mean(dim=0)
    torch.testing.assert_close(extract(samples), expected)


def test_the_parameters_are_those_of_the_published_networks():
    """12,697,264 is I3D's number with 400 classes, 72,141,184 VGGish's."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in I3D().parameters()) == 12_697_264
        assert sum(parameter.numel() for parameter in VGGish().parameters()) == 72_141_184
        names = list(I3D().state_dict())
    assert names[0] == "Conv3d_1a_7x7.conv3d.weight"
    assert {"Mixed_3b.b1a.bn.running_var", "Mixed_5c.b3b.conv3d.weight", "logits.conv3d.bias"} <= set(names)


@pytest.mark.parametrize("size", [7, 8, 9, 15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1)])
def test_padding_is_that_of_tensorflow(size, kernel, stride):
    padded = same_padding(torch.ones(1, 1, size, size, size), (kernel,) * 3, (stride,) * 3)
    outputs = (padded.shape[2] - kernel) // stride + 1
    assert outputs == math.ceil(size / stride)
    line = padded[0, 0, :, padded.shape[3] // 2, padded.shape[4] // 2]
    before, after = (line == 1).int().argmax().item(), (line.flip(0) == 1).int().argmax().item()
    assert 0 <= after - before <= 1


@pytest.mark.slow
def test_i3d_runs_with_random_weights(tmp_path):
    torch.manual_seed(0)
    torch.save(I3D().state_dict(), tmp_path / "i3d.pt")
    extract = media_extractor(f"i3d={tmp_path / 'i3d.pt'}", CLIP)
    features = extract(clips(2))
    assert features.shape == (2, CLASSES)
    assert features.isfinite().all()
    assert extract.figure(2048) == "FVD-i3d@2048"
    assert len(extract.weights) == 64
    torch.testing.assert_close(extract(clips(2)[1:]), features[1:], rtol=1e-3, atol=1e-5)


def test_i3d_refuses_clips_that_are_too_short(tmp_path):
    with pytest.raises(ValueError, match='the features "i3d" must have clips of at least 9 frames, got 8'):
        i3d_features(tmp_path / "i3d.pt", 8, CPU)


@pytest.mark.slow
def test_vggish_runs_with_random_weights(tmp_path):
    torch.manual_seed(0)
    torch.save({key: value.half() for key, value in VGGish().state_dict().items()}, tmp_path / "vggish.pt")
    features = vggish_features(tmp_path / "vggish.pt", 8000, CPU)(sounds(2))
    assert features.shape == (2, 128)
    assert features.isfinite().all()


def test_examples_of_vggish_are_windows_of_0_96_s():
    assert examples(torch.rand(2, 16000)).shape == (2, 1, 1, 96, 64)
    assert examples(torch.rand(2, 16000 * 10)).shape == (2, 10, 1, 96, 64)
    assert examples(torch.rand(2, 100)).shape == (2, 1, 1, 96, 64)


def test_mel_filters_of_vggish_find_a_tone():
    log_mel = examples(tone(1000, rate=16000, samples=16000)[:, 0])[0, 0, 0]
    band = log_mel.mean(dim=0).argmax().item()
    mel = [1127 * math.log(1 + f / 700) for f in (125, 7500, 1000)]
    assert band == pytest.approx((mel[2] - mel[0]) / (mel[1] - mel[0]) * 65 - 1, abs=1)
    assert mel_filters().shape == (64, 257)
    assert (mel_filters().max(dim=1).values > 0.3).all()


def state(**changes):
    return {**torch.nn.Linear(2, 3).state_dict(), **changes}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"bias must be \(3,\), got nothing"),
        (state(weight=torch.zeros(2, 2)), r"weight must be \(3, 2\), got \(2, 2\)"),
        (state(more=torch.zeros(1)), r"more must be nothing, got \(1,\)"),
        (state(note="text"), r"contains dict, expected a dictionary of the tensors of a network"),
        ([1, 2], r"contains list, expected a dictionary"),
    ],
)
def test_other_weights_are_refused(tmp_path, stored, message):
    torch.save(stored, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt .*{message}"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", "a network")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x01" * 100)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as weights \(.*\); expected those of a network"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / name, "a network")


def test_code_in_weights_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (np.save, (str(tmp_path / "attacked.npy"), np.zeros(1)))

    torch.save({"weight": Attack()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", "a network")
    assert not (tmp_path / "attacked.npy").exists()


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomae")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    VideoMAEModel(VideoMAEConfig(image_size=32, hidden_size=16, num_frames=4, **sizes)).save_pretrained(folder)
    size = {"shortest_edge": 32}
    VideoMAEImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_videomae_averages_the_tokens_of_evenly_chosen_frames(videomae):
    extract = media_extractor(f"videomae={videomae}", CLIP)
    samples = clips()
    features = extract(samples)
    assert features.shape == (3, 16)
    assert extract.figure(1000) == "FVD-videomae@1k"
    model = VideoMAEModel.from_pretrained(videomae).eval()
    processor = VideoMAEImageProcessor.from_pretrained(videomae)
    frames = [(samples[0, :, index] * 255).round().byte() for index in (0, 3, 5, 8)]
    with torch.no_grad():
        expected = model(**processor([frames], return_tensors="pt")).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(features[:1], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1],
        "num_attention_heads": [2, 2, 2],
        "num_mel_bins": 64,
        "spec_size": 64,
        "patch_size": 4,
        "window_size": 2,
        "projection_dim": 16,
    }
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 24,
    }
    ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=16)).save_pretrained(folder)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = RobertaTokenizer(vocab={token: i for i, token in enumerate([*special, *"abcdefghi", "Ġ"])}, merges=[])
    feature_extractor = ClapFeatureExtractor(sampling_rate=16000, max_length_s=1, truncation="rand_trunc")
    feature_extractor.save_pretrained(folder)
    ClapProcessor(feature_extractor, tokenizer).save_pretrained(folder)
    return folder


def test_clap_embeds_sounds_at_its_own_rate(clap):
    extract = media_extractor(f"clap={clap}", SOUND)
    features = extract(sounds())
    assert features.shape == (3, 16)
    assert extract.figure(1000) == "FAD-clap@1k"
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(extract(sounds()[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


def test_clap_does_not_depend_on_the_state_of_random_numbers(clap):
    """The extractor of transformers takes a random part of long sounds."""
    model, feature_extractor = ClapModel.from_pretrained(clap).eval(), ClapFeatureExtractor.from_pretrained(clap)
    long = torch.rand(2, 1, 16000 * 3 + 5000) - 0.5
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        with torch.no_grad():
            results.append(clap_audio(model, feature_extractor, long, 16000, CPU))
    assert torch.equal(*results)


def test_the_clap_score_is_100_times_the_cosine_of_the_embeddings(clap):
    score, samples, prompts = ClapScorer(str(clap), 8000), sounds(), ["a b", "c", "a " * 50]
    scores = score(samples, prompts)
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 100)).all()
    torch.testing.assert_close(score(samples[2:], prompts[2:]), scores[2:], rtol=1e-3, atol=1e-3)
    processor, model = ClapProcessor.from_pretrained(clap), ClapModel.from_pretrained(clap).eval()
    mono = resample(samples[1], 8000, 16000)[0].numpy()
    inputs = processor(text=[prompts[1]], audio=[mono], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    cosine = torch.cosine_similarity(output.audio_embeds, output.text_embeds).item()
    assert scores[1].item() == pytest.approx(100 * max(0, cosine), abs=1e-3)


def test_the_clap_score_is_a_metric_of_sounds_with_prompts(clap):
    settings = {
        "samples": 3,
        "seed": 0,
        "device": CPU,
        "extractor": media_extractor("spectrum", SOUND),
        "dimensions": 128,
    }
    context = MetricContext(**settings, prompts=["a b", "c", "d"], clap=str(clap), medium=SOUND)
    (metric,) = [m for m in installed_metrics().of("audio").build(context) if m.key == "clap_score"]
    assert metric.heading == f"CLAP-{clap.name}@3"
    expected = ClapScorer(str(clap), SOUND.rate)(sounds(), ["a b", "c", "d"])
    torch.testing.assert_close(metric.score(sounds(), ["a b", "c", "d"]), expected)
    assert metric.cache_key() != [] and "clap_score" not in {m.key for m in installed_metrics().of("video").classes}
    without = MetricContext(**settings, prompts=["a", "b", "c"], medium=SOUND)
    assert "clap_score" not in {m.key for m in installed_metrics().of("audio").build(without)}


def test_models_of_another_kind_are_refused(videomae, clap):
    with pytest.raises(
        ValueError, match=r"videomae=FOLDER must name a videomae model, .* is a clap model|could not load"
    ):
        media_extractor(f"videomae={clap}", CLIP)
    with pytest.raises(ValueError, match=r"clap=FOLDER must name a clap model, .* is a videomae model|could not load"):
        media_extractor(f"clap={videomae}", SOUND)
