"""Methods that break the contract of `Distiller`: each is refused in a sentence that names it, before it trains."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distill.config.recipe import load
from distill.config.registry import DISTILLERS, find
from distill.dry_run import dry_run
from distill.methods.base import Distiller
from distill.methods.contract import requested_pairs
from distill.train import train
from teachers.core.sampling import sample
from teachers.support.errors import run_cli
from tests.plugins import install
from tests.settings import FAST


@dataclass
class Options:
    weight: float = 1.0


class Plain(Distiller):
    """Draws the student's samples towards zero."""

    Options = Options

    def draw(self, batch):
        noise = batch.rng.normal(*self.teacher.shape)
        return sample(self.student, noise, [self.student.path.t_max], batch.cond, batch.rng.normal)

    def forward(self, phase, batch, step):
        loss = self.draw(batch).square().mean()
        return loss, {"loss": loss.detach()}


class WithoutGradient(Plain):
    def forward(self, phase, batch, step):
        return super().forward(phase, batch, step)[0].detach(), {}


class OneLossForEachSample(Plain):
    def forward(self, phase, batch, step):
        return self.draw(batch).square().flatten(1).mean(1), {}


class NoLogs(Plain):
    def forward(self, phase, batch, step):
        return super().forward(phase, batch, step)[0]


class NumbersAsLogs(Plain):
    def forward(self, phase, batch, step):
        return super().forward(phase, batch, step)[0], {"loss": 1.0}


class OtherKeys(Plain):
    def networks(self):
        return {"generator": [self.student]}


class TrainsNothing(Plain):
    def phases(self, step):
        return ()


class UnknownPhase(Plain):
    def phases(self, step):
        return ("studnet",)


class Critic(Plain):
    """Has a second network."""

    PHASES = ("student", "critic")

    def __init__(self, *words):
        super().__init__(*words)
        self.critic = nn.Linear(8, 1)

    def networks(self):
        return {"student": [self.student], "critic": [self.critic]}


class UnusedCritic(Critic):
    """Its critic's loss does not depend on the critic."""


class ForgottenCritic(Critic):
    PHASES = ("student",)

    def networks(self):
        return {"student": [self.student]}


class UnsavedCritic(Critic):
    def __init__(self, *words):
        super().__init__(*words)
        self.hidden = [self.critic]
        del self.critic

    def networks(self):
        return {"student": [self.student], "critic": self.hidden}


class FrozenStudent(Plain):
    def __init__(self, *words):
        super().__init__(*words)
        self.student.requires_grad_(False)


class StateOfText(Plain):
    def get_extra_state(self):
        return "text"

    def set_extra_state(self, state):
        return


class FarAverage(Plain):
    def __init__(self, *words):
        super().__init__(*words)
        self.target = copy.deepcopy(self.student).requires_grad_(False)

    def averages(self):
        return [(self.target, 1.5)]


class OtherAverage(FarAverage):
    def averages(self):
        return [(nn.Linear(2, 2), 0.5)]


class LogsOfTheLoop(Plain):
    def forward(self, phase, batch, step):
        loss, logs = super().forward(phase, batch, step)
        return loss, logs | {"gradient_norm": loss.detach()}


class TrainsTheTeacher(Plain):
    def __init__(self, teacher, guidance, options, student=None):
        super().__init__(teacher, guidance, options, teacher.denoiser.requires_grad_(True))


class HalfStudent(Plain):
    def __init__(self, *words):
        super().__init__(*words)
        self.student.bfloat16()


class LossNotFinite(Plain):
    """Its gradient is finite."""

    def forward(self, phase, batch, step):
        return super().forward(phase, batch, step)[0] + torch.tensor(torch.nan), {}


class AngleNotFinite(Plain):
    def sampling_schedules(self):
        return [[1.5, float("nan")]]


class AngleOutside(Plain):
    def sampling_schedules(self):
        return [[1.7, 0.5]]


class TensorsAsAngles(Plain):
    def sampling_schedules(self):
        return [[torch.tensor(1.5)]]


class NoSchedule(Plain):
    def sampling_schedules(self):
        return []


class MoreStepsThanAngles(Plain):
    def step_counts(self, times):
        return (7,)


BROKEN = {
    WithoutGradient: "WithoutGradient.forward in the phase 'student' must have a gradient",
    OneLossForEachSample: r"must be a scalar tensor, got a tensor of float32 with the shape \(4,\)",
    NoLogs: "NoLogs.forward must return a loss and a dict",
    NumbersAsLogs: "must be scalar tensors of real numbers, got 1.0 as 'loss'",
    LogsOfTheLoop: "LogsOfTheLoop.forward logs must be strings other than gradient_norm and skipped",
    TrainsTheTeacher: "TrainsTheTeacher.networks must not train the teacher's own network",
    HalfStudent: "the student of HalfStudent must have float32 weights, got bfloat16",
    OtherKeys: r"OtherKeys.networks must have the keys of PHASES \(student\), got generator",
    TrainsNothing: "none of the 2 steps of this run has a phase that does",
    UnknownPhase: r"UnknownPhase.phases must return names of PHASES \(student\), got \('studnet',\)",
    UnusedCritic: "in the phase 'critic' must depend on the networks of that phase",
    ForgottenCritic: "no phase trains critic.weight, critic.bias; call requires_grad_",
    UnsavedCritic: "must be submodules of UnsavedCritic, or they are in no checkpoint",
    FrozenStudent: "must have trainable parameters for the phase 'student', got none",
    StateOfText: "the state of StateOfText must consist of tensors, got str",
    FarAverage: "a decay of FarAverage.averages must be at least 0 and at most 1, got 1.5",
    OtherAverage: "must be submodules with the student's parameters, got another Linear",
    LossNotFinite: "gradients of phase student were not finite in any step, so its networks were not trained",
    AngleNotFinite: "at most 1.5.* radians, the end of the teacher's noise schedule, got nan",
    AngleOutside: "at most 1.5.* radians, the end of the teacher's noise schedule, got 1.7",
    TensorsAsAngles: r"must be numbers above 0 .*, got tensor\(1.5000\)",
    NoSchedule: "NoSchedule.sampling_schedules must return at least one schedule",
    MoreStepsThanAngles: r"step_counts must return numbers from 1 to 1, the steps of the schedule, got \(7,\)",
}


@pytest.fixture
def recipe_of(text_pipeline, tmp_path, monkeypatch):
    """recipe_of(class, *overrides): a recipe of two steps with the class of this module as an installed method."""

    def make(method, *overrides):
        name, site = method.__name__.lower(), tmp_path / f"site-{method.__name__}"
        if not site.exists():
            install(monkeypatch, site, f"package-{name}", {DISTILLERS: [f"{name} = {__name__}:{method.__name__}"]})
        (tmp_path / "prompts.txt").write_text("a coat\na boot\n")
        (tmp_path / "recipe.yaml").write_text(
            f"name: run\noutput: {tmp_path / 'runs'}\ndata: {{prompts: {tmp_path / 'prompts.txt'}}}\n"
            f"method: {{name: {name}}}\nteacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
        )
        return load(tmp_path / "recipe.yaml", [*FAST, "train.steps=2", *overrides])

    return make


@pytest.mark.slow
@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_a_method_that_breaks_the_contract_is_refused_by_name(method, recipe_of, tmp_path):
    recipe = recipe_of(method)
    with pytest.raises(ValueError, match=BROKEN[method]):
        train(recipe)
    assert not (tmp_path / "runs/run/checkpoints/00000002").exists()
    assert not (tmp_path / "runs/run/pipeline/model_index.json").exists()


@pytest.mark.exhaustive
def test_a_dry_run_finds_what_would_stop_the_export(recipe_of):
    with pytest.raises(ValueError, match="numbers from 1 to 1, the steps of the schedule"):
        dry_run(recipe_of(MoreStepsThanAngles))


class RunningMean(Plain):
    """Its student counts the steps in a buffer."""

    def __init__(self, *words):
        super().__init__(*words)
        self.student.register_buffer("count", torch.zeros(()))

    def forward(self, phase, batch, step):
        self.student.count += 1
        return super().forward(phase, batch, step)


@pytest.mark.slow
def test_buffers_of_the_student_are_part_of_its_average(recipe_of):
    recipe = recipe_of(RunningMean)
    train(recipe)
    folder = recipe.folder / "checkpoints/00000002"
    assert load_file(folder / "ema.safetensors")["count"] == load_file(folder / "weights.safetensors")["student.count"]
    assert load_file(folder / "ema.safetensors")["count"] == 2


class Adversarial(Critic):
    """The student's loss passes through the critic, whose own loss is independent of the student's samples."""

    detached = False

    def forward(self, phase, batch, step):
        if phase == "critic":
            loss = self.critic(torch.ones(1, 8)).sum()
        else:
            with torch.no_grad() if self.detached else torch.enable_grad():
                critic = self.critic.weight.abs().mean()
            loss = self.draw(batch).square().mean() * (1 + critic)
        return loss, {"loss": loss.detach()}


class Detached(Adversarial):
    detached = True


@pytest.mark.exhaustive
def test_gradients_of_one_phase_do_not_reach_the_networks_of_another(recipe_of):
    critics = []
    for method in (Adversarial, Detached):
        recipe = recipe_of(method, f"name={method.__name__}")
        train(recipe)
        critics.append(load_file(recipe.folder / "checkpoints/00000002/weights.safetensors")["critic.weight"])
    assert torch.equal(*critics)


@dataclass
class NameOptions:
    name: str = "x"


class OptionCalledName(Plain):
    Options = NameOptions


class OneText(Plain):
    PHASES = "student"


class Abstract(Distiller):
    Options = Options


@dataclass
class Unresolved:
    weight: "Undefined" = 1.0  # noqa: F821


class UnresolvedOptions(Plain):
    Options = Unresolved


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (OptionCalledName, "must not have an option called name"),
        (OneText, "OneText.PHASES must be a tuple of different names, got 'student'"),
        (Abstract, "Abstract must implement forward"),
        (UnresolvedOptions, "name 'Undefined' is not defined"),
    ],
)
def test_a_class_that_is_no_method_cannot_be_loaded(method, words, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "broken", {DISTILLERS: [f"broken = {__name__}:{method.__name__}"]})
    with pytest.raises(ValueError, match=r"the method 'broken' of the package broken .* could not be loaded") as error:
        find(DISTILLERS, "broken")
    assert words in str(error.value)


@pytest.mark.parametrize("answer", [5, (-1, 3), (4, 0), (1.0, 2), (1, 2, 3)])
def test_pairs_are_two_whole_numbers(answer):
    class Pairs(Plain):
        @classmethod
        def pairs(cls, options):
            return answer

    with pytest.raises(ValueError, match=r"Pairs\.pairs must return the number of pairs"):
        requested_pairs(Pairs, Options())


@dataclass
class PathOptions:
    file: Path = Path("weights.safetensors")
    function: object = None


class WithPath(Plain):
    Options = PathOptions


@pytest.mark.slow
def test_options_with_a_path_train_and_others_are_refused(recipe_of, monkeypatch):
    assert train(recipe_of(WithPath)).is_dir()
    monkeypatch.setattr(PathOptions.__init__, "__defaults__", (Path("a"), print))
    with pytest.raises(ValueError, match=r"method.function must consist of numbers, texts and paths"):
        train(recipe_of(WithPath, "name=other"))


class Fails(Plain):
    def forward(self, phase, batch, step):
        raise RuntimeError("shapes (4) and (5)")


@pytest.mark.slow
def test_an_exception_of_a_plug_in_names_the_plug_in(recipe_of, capsys):
    recipe = recipe_of(Fails)
    assert run_cli(lambda: train(recipe)) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "RuntimeError: shapes (4) and (5)" in line)
    assert "error: the plug-in 'fails' of the package package-fails (" in line and "please report" not in line
