"""Prompts from where a recipe or a command says they are, read in one way for training and for judging."""

from pathlib import Path

from teachers import pocket


def read_prompts(source: str) -> list[str]:
    """The prompts of `source`: "pocket" (the pocket teacher's own) or a UTF-8 text file, one a line, blanks dropped.

    Raises ValueError, one sentence, where the file is missing, is not UTF-8 or holds no prompts.
    """
    if source == "pocket":
        return pocket.balanced_prompts(160)  # all phrasings of all classes; it repeats from there
    file = Path(source)
    if not file.is_file():
        raise ValueError(f"there is no file of prompts {source}; give a text file with one prompt a line")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text; save the prompts as UTF-8, one a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{source} holds no prompts; write one a line")
    return prompts
