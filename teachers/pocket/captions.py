"""Captions of the pocket teacher: ten classes of clothing, several names for each, several templates."""

import re

CLASS_NAMES: tuple[tuple[str, ...], ...] = (
    ("t-shirt", "tee"),
    ("trousers", "pants"),
    ("pullover", "sweater"),
    ("dress",),
    ("coat", "jacket"),
    ("sandal",),
    ("shirt",),
    ("sneaker", "trainer"),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
TEMPLATES: tuple[str, ...] = (
    "{0}",
    "{1}",
    "a photo of {1}",
    "a picture of {1}",
    "a grey photograph of {1}",
    "a product photo of {1}",
    "an image of {1} on a black background",
    "one {0}, front view",
)

_LABELS = {name: label for label, names in enumerate(CLASS_NAMES) for name in names}
_PATTERN = re.compile(
    r"(?<![\w-])(" + "|".join(re.escape(n) for n in sorted(_LABELS, key=len, reverse=True)) + r")(?![\w-])",
    re.IGNORECASE,
)


def _with_article(name: str) -> str:
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def captions(label: int) -> list[str]:
    """All captions of class `label` (0..9)."""
    return [t.format(name, _with_article(name)) for name in CLASS_NAMES[label] for t in TEMPLATES]


def all_captions() -> list[str]:
    """All captions that the pocket teacher was trained on, class by class."""
    return [caption for label in range(len(CLASS_NAMES)) for caption in captions(label)]


def balanced_prompts(count: int) -> list[str]:
    """`count` prompts that cycle through the ten classes and through each class's captions, in a fixed order."""
    by_class = [captions(label) for label in range(len(CLASS_NAMES))]
    classes = len(by_class)
    return [by_class[i % classes][(i // classes) % len(by_class[i % classes])] for i in range(count)]


def label_of(prompt: str) -> int | None:
    """The class (0..9) of the first class name in `prompt`; None if it contains none."""
    match = _PATTERN.search(prompt)
    return _LABELS[match.group(1).lower()] if match else None
