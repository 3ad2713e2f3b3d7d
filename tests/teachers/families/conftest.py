"""Fixtures of the families' tests: teachers, and students after two steps of sCM."""

import functools

import pytest
import torch

from distill.config.registry import TEACHERS, find
from distill.methods.scm import SCM, SCMOptions
from tests.teachers.families.stock import NAMES
from tests.teachers.families.training import step


@pytest.fixture(scope="module")
def load(tiny):
    """Function load(name) -> the teacher; each is loaded once."""

    @functools.cache
    def teacher(name):
        family, folder = tiny(name)
        return find(TEACHERS, family).load(str(folder), torch.device("cpu"))

    return teacher


@pytest.fixture(scope="module")
def load_media(tiny_media):
    """Function load_media(name) -> the teacher of clips or sounds; each is loaded once."""

    @functools.cache
    def teacher(name):
        family, folder, size = tiny_media(name)
        return find(TEACHERS, family).load(str(folder), torch.device("cpu"), size=size)

    return teacher


@pytest.fixture(scope="module")
def load_any(load, load_media):
    """Function load_any(name) -> the teacher of images, clips or sounds; each is loaded once."""
    return lambda name: load(name) if name in NAMES else load_media(name)


@pytest.fixture(scope="module")
def trained(load_any):
    """Function trained(name) -> an sCM distiller after one step of adaptation and one step with its tangent."""

    @functools.cache
    def train(name):
        torch.manual_seed(0)
        teacher = load_any(name)
        distiller = SCM(teacher, 2.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
        same = teacher.denoiser.path.slow_time and not teacher.guided  # the student needs no adaptation
        for number in (0, 1)[same:]:
            step(distiller, "student", teacher, name, number)
        return distiller

    return train
