"""The parts of the pocket audio teacher that need no trained weights."""

import math

import pytest
import torch

from teachers.pocket_audio.captions import (
    INSTRUMENTS,
    LOWEST,
    NOTES,
    all_captions,
    balanced_labels,
    balanced_prompts,
    captions,
    label_of,
    vague_captions,
)
from teachers.pocket_audio.judges import InstrumentJudge, pitch
from teachers.pocket_audio.parts import LENGTH, RATE, SAMPLES, make_tokenizer


def tone(note: int, cents: float = 0.0, amplitudes: tuple[float, ...] = (1.0, 0.5, 0.3, 0.2)) -> torch.Tensor:
    """A harmonic tone, (1, 1, SAMPLES)."""
    frequency = 440 * 2 ** ((LOWEST + note + cents / 100 - 69) / 12)
    time = torch.arange(SAMPLES) / RATE
    parts = [a * torch.sin(2 * math.pi * frequency * (k + 1) * time) for k, a in enumerate(amplitudes)]
    return 0.2 * torch.stack(parts).sum(0)[None, None]


def test_prompts_name_their_labels():
    labels = balanced_labels(480)
    assert [label_of(p) for p in balanced_prompts(480)] == [tuple(pair) for pair in labels.tolist()]
    assert len({tuple(pair) for pair in labels[:240].tolist()}) == 240


def test_vague_captions_name_no_note():
    assert [label_of(c) for c in vague_captions(2, 5)] == [(2, None)] * 3
    assert label_of("A FLUTE playing a c#3") == (INSTRUMENTS.index("flute"), NOTES.index("C#3"))
    assert label_of("a drum") == (None, None)


def test_every_caption_is_tokenized_word_by_word():
    tokenizer = make_tokenizer()
    encoded = tokenizer(all_captions()).input_ids
    assert max(map(len, encoded)) <= LENGTH
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert len({tuple(ids) for ids in encoded}) == len(encoded)
    assert tokenizer.tokenize(captions(9, 1)[0]) == ["▁a", "▁flute", "▁playing", "▁a", "▁C#3"]


def test_a_saved_tokenizer_encodes_alike(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    caption = captions(9, 1)[4]
    assert loaded(caption).input_ids == tokenizer(caption).input_ids
    assert loaded.model_max_length == LENGTH


@pytest.mark.parametrize("cents", [-40, 0, 40])
def test_pitch_of_harmonic_tones(cents):
    audio = torch.cat([tone(note, cents) for note in range(len(NOTES))])
    assert pitch(audio).tolist() == list(range(len(NOTES)))


def test_pitch_of_tones_with_a_weak_fundamental():
    audio = torch.cat([tone(note, amplitudes=(0.1, 1.0, 0.6, 0.5, 0.3)) for note in range(len(NOTES))])
    assert pitch(audio).tolist() == list(range(len(NOTES)))


def test_pitch_in_noise():
    audio = torch.cat([tone(note) for note in range(len(NOTES))])
    noisy = audio + 0.05 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    assert pitch(noisy).tolist() == list(range(len(NOTES)))


def test_the_judge_refuses_sounds_of_another_length():
    with pytest.raises(ValueError, match=r"\(1, 4096\), got \(1, 100\)"):
        InstrumentJudge().features(torch.zeros(1, 1, 100))
