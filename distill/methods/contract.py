"""What the training loop expects of a method, checked when its networks are built and at every loss.

Methods of other packages are written against `distill.methods.base.Distiller`. Whatever would let a run end without
training, or lose a part of it when it is resumed, is an error here that names the method.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from distill.methods.base import Distiller, Logs
from teachers.core.trigflow import VariancePreserving
from teachers.networks.adapters import unwrap
from teachers.support.text import first_names

OWN_LOGS = ("gradient_norm", "skipped")  # the training loop's own values of each phase
ANGLE_ERROR = 1e-6  # radians: of angles in single precision


def requested_pairs(method: type[Distiller], options: Any) -> tuple[int, int]:
    """The result of `method.pairs`: the number of teacher pairs, and the teacher's steps for each.

    Raises:
        ValueError: If it is something else, or a number is too small.
    """
    requested: Any = method.pairs(options)
    whole = isinstance(requested, tuple | list) and all(type(number) is int for number in requested)
    if not whole or len(requested) != 2 or requested[0] < 0 or (requested[0] and requested[1] < 1):
        raise ValueError(
            f"{method.__name__}.pairs must return the number of pairs (0: none) and the teacher's steps for each, "
            f"got {requested!r}"
        )
    return requested[0], requested[1]


def check_distiller(distiller: Distiller, steps: int) -> None:
    """Check the networks and the phases of a method before its first step.

    Args:
        distiller: The method.
        steps: Steps of the run.

    Raises:
        ValueError: If training by it would not train the student, would silently leave out networks, or could not be
            resumed.
    """
    name, networks = type(distiller).__name__, dict(distiller.networks())
    if sorted(networks) != sorted(distiller.PHASES):
        raise ValueError(
            f"{name}.networks must have the keys of PHASES ({', '.join(distiller.PHASES)}), got {', '.join(networks)}"
        )
    registered = set(distiller.parameters())
    trained = {phase: _trainable(modules) for phase, modules in networks.items()}
    for phase, parameters in trained.items():
        if not parameters:
            raise ValueError(f"{name}.networks must have trainable parameters for the phase {phase!r}, got none")
        if parameters - registered:
            raise ValueError(
                f"the networks of the phase {phase!r} must be submodules of {name}, or they are in no checkpoint: "
                "assign each to an attribute, or use torch.nn.ModuleList"
            )
    left = _trainable([distiller]) - set().union(*trained.values())
    if left:
        names = [key for key, parameter in distiller.named_parameters() if parameter in left]
        raise ValueError(
            f"{name}.networks must have every trainable parameter, but no phase trains {first_names(names, 3)}; "
            "call requires_grad_(False) on what is frozen"
        )
    if set().union(*trained.values()) & set(distiller.teacher.denoiser.parameters()):
        raise ValueError(f"{name}.networks must not train the teacher's own network; copy it (teacher.student())")
    if half := {str(p.dtype).removeprefix("torch.") for p in _student(distiller)} & {"float16", "bfloat16"}:
        raise ValueError(
            f"the student of {name} must have float32 weights, got {half.pop()}; for half-precision arithmetic, set "
            "train.precision"
        )
    _check_state(distiller, name)
    _check_averages(distiller, name)
    _check_student_trains(distiller, steps, {phase for phase in trained if trained[phase] & set(_student(distiller))})


def _trainable(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters() if p.requires_grad}


def _student(distiller: Distiller) -> list[nn.Parameter]:
    return list(distiller.student.parameters())


def _check_state(distiller: Distiller, name: str) -> None:
    """Every value of the method's state must be a tensor, because checkpoint files hold only tensors."""
    for key, value in distiller.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the state of {name} must consist of tensors, got {type(value).__name__} at {key}; store it in a "
                "buffer (register_buffer)"
            )


def _check_averages(distiller: Distiller, name: str) -> None:
    shapes, registered = [p.shape for p in _student(distiller)], set(distiller.parameters())
    for network, decay in distiller.averages():
        if not 0 <= decay <= 1:
            raise ValueError(f"a decay of {name}.averages must be at least 0 and at most 1, got {decay!r}")
        own = list(network.parameters())
        if [p.shape for p in own] != shapes or not registered.issuperset(own):
            raise ValueError(
                f"the networks of {name}.averages must be submodules with the student's parameters, got another "
                f"{type(network).__name__}"
            )


def _check_student_trains(distiller: Distiller, steps: int, of_student: set[str]) -> None:
    """Raise ValueError if no phase that trains the student occurs in any step of the run."""
    if steps and not any(of_student & set(phases_of(distiller, step)) for step in range(steps)):
        raise ValueError(
            f"{type(distiller).__name__} must train the student, but none of the {steps} steps of this run has a phase "
            "that does"
        )


def phases_of(distiller: Distiller, step: int) -> Sequence[str]:
    """The phases of one step, from `Distiller.phases`.

    Raises:
        ValueError: If one of them is not in `PHASES`.
    """
    phases = distiller.phases(step)
    unknown = [phase for phase in phases if phase not in distiller.PHASES]
    if isinstance(phases, str) or unknown:
        raise ValueError(
            f"{type(distiller).__name__}.phases must return names of PHASES ({', '.join(distiller.PHASES)}), got "
            f"{phases!r} for step {step}"
        )
    return phases


def check_loss(distiller: Distiller, phase: str, result: Any) -> tuple[Tensor, Logs]:
    """`result` of `Distiller.forward`, checked.

    Raises:
        ValueError: If it is not a loss that a phase can be trained by, or the values to log are not scalars.
    """
    name = f"{type(distiller).__name__}.forward"
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"{name} must return a loss and a dict of values to log, got {_kind(result)}")
    loss, logs = result
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise ValueError(f"the loss of {name} in the phase {phase!r} must be a scalar tensor, got {_kind(loss)}")
    if not loss.requires_grad:
        raise ValueError(f"the loss of {name} in the phase {phase!r} must have a gradient, got one without")
    if not isinstance(logs, dict):
        raise ValueError(f"{name} must return its values to log as a dict, got {_kind(logs)}")
    for key, value in logs.items():
        if not isinstance(key, str) or key in OWN_LOGS:
            raise ValueError(
                f"the names of the values that {name} logs must be strings other than {' and '.join(OWN_LOGS)}, which "
                f"the training loop logs, got {key!r}"
            )
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"the values that {name} logs must be scalar tensors of real numbers, got {_kind(value)} as {key!r}"
            )
    return loss, logs


def check_gradients(distiller: Distiller, phase: str, parameters: Sequence[nn.Parameter]) -> None:
    """Raise ValueError if none of the phase's parameters has a gradient after its losses."""
    if all(parameter.grad is None for parameter in parameters):
        raise ValueError(
            f"the loss of {type(distiller).__name__}.forward in the phase {phase!r} must depend on the networks of "
            "that phase, but none of their parameters has a gradient"
        )


def check_schedules(distiller: Distiller) -> None:
    """Check before training that the student's sampling times can be exported.

    Raises:
        ValueError: If they cannot.
    """
    teacher, student, name = distiller.teacher, distiller.student, type(distiller).__name__
    schedules = distiller.sampling_schedules()
    if not schedules or not all(schedules):
        raise ValueError(f"{name}.sampling_schedules must return at least one schedule with an angle, got {schedules}")
    for times in schedules:
        if wrong := [
            t for t in times if not isinstance(t, float | int) or not 0 < t <= student.path.t_max + ANGLE_ERROR
        ]:
            raise ValueError(
                f"the angles of a schedule of {name}.sampling_schedules must be numbers above 0 and at most "
                f"{student.path.t_max:.9g} radians, the end of the teacher's noise schedule, got {wrong[0]!r}"
            )
        if any(later >= earlier for earlier, later in pairwise(times)):
            raise ValueError(f"the angles of a schedule of {name}.sampling_schedules must decrease, got {times}")
        path = student.path
        if isinstance(path, VariancePreserving) and path.num_train_timesteps < 2 * len(times):
            raise ValueError(
                f"a student of {len(times)} steps needs a teacher with at least {2 * len(times)} timesteps, got "
                f"{path.num_train_timesteps} (num_train_timesteps of its scheduler)"
            )
        counts = distiller.step_counts(times)
        if not counts or any(count not in range(1, len(times) + 1) for count in counts):
            raise ValueError(
                f"{name}.step_counts must return numbers from 1 to {len(times)}, the steps of the schedule, got "
                f"{counts!r}"
            )
        teacher.check_exportable(times)
    if teacher.exports and not teacher.time_embeddings(unwrap(student.network)):
        for times in schedules:
            teacher.pipeline(student, times)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} with the shape {tuple(value.shape)}"
    return (
        f"{value!r}"[:80] if isinstance(value, bool | int | float | str | type(None)) else f"a {type(value).__name__}"
    )
