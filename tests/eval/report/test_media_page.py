"""Reports of clips and sounds: what the page plays, the words in it, and the stills of grid.png."""

import base64
import io
import re
import wave

import pytest
import torch
from PIL import Image

from eval.report import write_report
from eval.report.columns import columns
from eval.report.html import page
from eval.report.model_index import model_index
from eval.report.samples import SOUND_BYTES, shown, views
from teachers.media import Audio, Video, to_record

pytestmark = pytest.mark.slow

CLIP = Video(frames=5, height=20, width=40, rate=8)
SOUND = Audio(channels=1, samples=4000, rate=8000)


def report_of(report, medium):
    words = {"noun": medium.noun, "plural": medium.plural, "size": medium.size}
    for row in report["rows"]:
        row["times_real_time"] = 1000 * medium.seconds / row["latency_ms"]
    return report | {"medium": to_record(medium) | words}


def samples_of(medium, count=3):
    low = -1 if isinstance(medium, Audio) else 0
    return [torch.rand(count, *medium.shape) * (1 - low) + low for _ in range(4)]


def decoded(uri):
    return base64.b64decode(uri.partition("base64,")[2])


def test_clips_are_animations_of_all_frames_in_the_grid_and_in_the_viewer(report):
    html = page(report_of(report, CLIP), samples_of(CLIP), CLIP)
    sources = re.findall(r'<img src="(data:image/webp;base64,[^"]*)" width="(\d+)" height="(\d+)"', html)
    assert len(sources) == 4 * 3
    image = Image.open(io.BytesIO(decoded(sources[0][0])))
    assert (image.n_frames, image.size) == (5, (40, 20))
    assert sources[0][1:] == ("80", "40")  # four times as large, in pixels of a display with two for each CSS pixel
    assert "Clips loop together" in html and "<audio" not in html


def test_large_clips_are_reduced(report):
    medium = Video(frames=2, height=300, width=600, rate=8)
    html = page(report_of(report, medium), samples_of(medium, 1), medium)
    source = re.search(r'<img src="(data:image/webp;base64,[^"]*)" width="96" height="48"', html)
    assert Image.open(io.BytesIO(decoded(source[1]))).size == (192, 96)


def test_sounds_have_one_player_each_under_their_spectrogram(report):
    samples = samples_of(SOUND)
    html = page(report_of(report, SOUND), samples, SOUND)
    players = re.findall(r'<audio controls [^>]*src="(data:audio/wav;base64,[^"]*)"', html)
    assert len(players) == 4 * 3
    with wave.open(io.BytesIO(decoded(players[0]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 4000)
        stored = torch.frombuffer(bytearray(sound.readframes(4000)), dtype=torch.int16)
    assert (stored / 32767 - samples[0][0, 0]).abs().max() < 1e-4
    assert html.count("<img") == 4 * 3
    assert "Players have the first" not in html and "spectrograms" in html


@pytest.mark.exhaustive
def test_of_long_sounds_the_page_plays_the_beginning(report):
    medium = Audio(channels=2, samples=44100 * 47, rate=44100)
    samples = [torch.zeros(2, *medium.shape)] * 4
    _, played = views(samples, medium)
    assert played == pytest.approx(SOUND_BYTES / (8 * 2 * 2 * 44100))
    html = page(report_of(report, medium), samples, medium)
    assert len(html) < 5e6
    assert f"Players have the first {played:.1f} s." in html


@pytest.mark.parametrize("medium", [CLIP, SOUND], ids=["video", "audio"])
def test_words_of_tables_and_cards_are_those_of_the_medium(report, medium, tmp_path):
    report = report_of(report, medium)
    write_report(report, samples_of(medium), tmp_path, medium)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = html + (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"{medium.plural.capitalize()}/s" in text and "× real time" in text and "</b> real time" in html
    assert "Images/s" not in text and "per image" not in text and "one image" not in text
    assert {"times_real_time"} <= {column.key for column in columns(report)}
    assert medium.size in html
    assert f"type: {medium.tag}" in model_index(report)
    assert Image.open(tmp_path / "grid.png").height > 100
    assert "times_real_time" in (tmp_path / "report.csv").read_text(encoding="utf-8")


def test_the_still_of_a_clip_has_four_of_its_frames():
    clip = torch.linspace(0, 1, 5)[None, :, None, None].expand(3, 5, 20, 40)
    (still,) = shown([clip[None]], CLIP).stills()[0]
    assert still.shape == (3, 40, 80)
    assert [round(float(still[0, y, x]), 2) for y in (5, 25) for x in (10, 50)] == [0, 0.25, 0.75, 1]


def test_long_sounds_are_played_from_the_files_beside_the_page(report, tmp_path):
    medium = Audio(channels=2, samples=44100 * 20, rate=44100)
    write_report(report_of(report, medium), [torch.zeros(1, *medium.shape)] * 4, tmp_path, medium)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'<audio controls [^>]*src="([^"]*)"', html)
    assert len(sources) == 4 and all(source.startswith("sounds/0") for source in sources)
    with wave.open(str(tmp_path / sources[0])) as sound:
        assert sound.getnframes() == medium.samples
    assert "Players have the first" not in html


@pytest.mark.parametrize(
    ("medium", "first"), [(CLIP, "clips/01-teacher-50-steps/000.webp"), (SOUND, "sounds/01-teacher-50-steps/000.wav")]
)
def test_clips_and_sounds_are_kept_beside_the_page(report, medium, first, tmp_path):
    write_report(report_of(report, medium), samples_of(medium), tmp_path, medium)
    assert (tmp_path / first).stat().st_size > 100
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (f'data-file="{first}"' in html) == (medium is CLIP)
