"""One-line errors of loading pipelines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from teachers.loading.location import configuration
from teachers.support.errors import is_foreign, reason


@contextmanager
def loading_errors(path: str) -> Iterator[None]:
    """A context that turns every error of loading the pipeline at `path` into a one-line ValueError."""
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise ValueError(_message(error, path)) from error


def _message(error: BaseException, path: str) -> str:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    text = " ".join(" ".join(str(link) for link in chain).split())
    first = reason(error)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return f"{path} is gated: accept its terms on its page at the Hub, log in (hf auth login), and run again"
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"the Hub has no {path}, or it is private: check the spelling, or log in (hf auth login)"
    if "no file named" in text or "Could not find the necessary `safetensors`" in text:
        return f"{path} has no safetensors weights for a component ({first}); save it again with save_pretrained"
    if "meta tensor" in text:
        return f"{path} has no weights for a component of its configuration; get the complete file"
    if any(isinstance(link, ConnectionError) for link in chain) or "connect" in text.lower():
        missing = f"configuration folder {configuration(path)}" if Path(path).is_file() else f"complete copy of {path}"
        return f"the Hub cannot be reached and there is no {missing} on this machine; download it first"
    return f"the pipeline {path} could not be loaded: {first}"
