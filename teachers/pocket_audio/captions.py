"""Captions of the pocket audio teacher: ten instruments, two octaves of notes, several templates."""

import re

from torch import Tensor

from teachers.pocket.pairs import balanced_pairs, every_caption, prompts_of

INSTRUMENTS: tuple[str, ...] = (
    "piano",
    "music box",
    "marimba",
    "accordion",
    "guitar",
    "violin",
    "choir",
    "trumpet",
    "clarinet",
    "flute",
)
LOWEST = 48  # MIDI key of the lowest note, C3
NOTES: tuple[str, ...] = tuple(
    f"{name}{octave}" for octave in (3, 4) for name in ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
)
TEMPLATES: tuple[str, ...] = (
    "a {0} playing a {1}",
    "{0}, {1}",
    "a {1} on the {0}",
    "the note {1} played on a {0}",
    "a recording of a {0} playing the note {1}",
)
VAGUE_TEMPLATES: tuple[str, ...] = ("{0}", "a {1} note on the {0}", "a {0} playing a {1} note")

_INSTRUMENT = re.compile(r"\b(" + "|".join(INSTRUMENTS) + r")\b", re.IGNORECASE)
_NOTE = re.compile(r"(?<![\w#])([A-G]#?[34])(?![\w#])", re.IGNORECASE)


def register(note: int) -> str:
    """ "low" for the lower octave (notes 0..11), "high" for the upper one."""
    return "low" if note < 12 else "high"


def captions(instrument: int, note: int) -> list[str]:
    """The captions that name both an instrument (0..9) and a note (0..23)."""
    return [template.format(INSTRUMENTS[instrument], NOTES[note]) for template in TEMPLATES]


def vague_captions(instrument: int, note: int) -> list[str]:
    """The captions that name an instrument (0..9) and at most the octave of a note (0..23)."""
    return [template.format(INSTRUMENTS[instrument], register(note)) for template in VAGUE_TEMPLATES]


def all_captions() -> list[str]:
    """All captions that the pocket audio teacher was trained on, each once."""
    return every_caption(len(INSTRUMENTS), len(NOTES), captions, vague_captions)


def balanced_labels(count: int) -> Tensor:
    """`count` pairs of instrument and note, (count, 2), that cycle through all 240 pairs in a fixed order."""
    return balanced_pairs(count, len(INSTRUMENTS), len(NOTES), stride=7)


def balanced_prompts(count: int) -> list[str]:
    """The prompts of `balanced_labels(count)`, which cycle through the templates."""
    return prompts_of(balanced_labels(count), len(INSTRUMENTS) * len(NOTES), captions)


def label_of(prompt: str) -> tuple[int | None, int | None]:
    """The instrument (0..9) and the note (0..23) that a prompt names, each None if it names none."""
    instrument, note = _INSTRUMENT.search(prompt), _NOTE.search(prompt)
    return (
        INSTRUMENTS.index(instrument.group(1).lower()) if instrument else None,
        NOTES.index(note.group(1).upper()) if note else None,
    )
