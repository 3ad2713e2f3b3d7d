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
from eval.features.light_features import motion_features, spectrum_features
from eval.features.media_extractors import media_extractor
from eval.features.media_models import ClapScorer, clap_audio
from eval.metrics.context import MetricContext
from eval.metrics.registry import installed_metrics
from teachers.media import Image
from teachers.media.resampling import resample
from tests.eval.features.media_samples import CLIP, CPU, SOUND, clips, sounds, tone


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
