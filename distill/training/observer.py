"""`Observer`: what a run shows of its student after some of its steps, evaluations and validation samples."""

from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.config.run_files import HISTORY
from distill.data.dataset import Dataset
from distill.training.engine import Engine
from distill.training.jsonl_log import JsonlLog
from distill.training.monitor import Monitor
from distill.training.outcome import choose_ema, keep_best
from distill.training.setup import build_held_out, build_validation
from distill.training.state import TrainState
from distill.training.status import Status
from teachers.core.teacher import Teacher


class Observer:
    """Evaluates the EMA and draws validation samples at the steps that the recipe names. Every process has one.

    Args:
        recipe: The run's recipe.
        state: The state whose EMA is evaluated.
        teacher: The run's teacher.
        dataset: The run's data.
        engine: The run's engine.
        status: The run's status file.
        run: The run's key, from `run_key`.

    Attributes:
        held_out: The held-out evaluation; None on processes that do not take part in it.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: TrainState,
        teacher: Teacher,
        dataset: Dataset,
        engine: Engine,
        status: Status,
        run: str,
    ) -> None:
        self.recipe, self.state, self.engine, self.status, self.run = recipe, state, engine, status, run
        self.held_out = build_held_out(recipe, teacher, dataset, engine)
        self.validation = build_validation(recipe, teacher, dataset, self.held_out, engine)
        self.history = JsonlLog(recipe.folder / HISTORY, state.step, run)

    def observe(self, first: bool = False) -> None:
        """Evaluate and draw validation samples where they are due.

        Args:
            first: Whether this is before the first step of this process: only what is not there yet is made.
        """
        step, settings = self.state.step, self.recipe.train
        judged = self._due(settings.evaluate_every) and not (first and self.history.last >= step)
        due = self._due(self.recipe.evaluation.validation_every or settings.evaluate_every)
        validation = self.validation if due else None
        if first and validation is not None and validation.has(step):
            validation = None
        if not judged and validation is None:
            return
        with self.status.evaluating():
            if judged:
                self._evaluate()
            if validation is not None:
                validation.draw(self.state.distiller, self.state.ema, step, self.engine.trackers)
        if self.engine.is_main and judged and step:
            tqdm.write(self.status.summary())

    def _due(self, every: int) -> bool:
        return bool(every) and (self.state.step % every == 0 or self.state.step == self.recipe.train.steps)

    def _evaluate(self) -> None:
        if self.held_out is None:
            return
        state, held_out = self.state, self.held_out
        monitor = Monitor(self.recipe.folder, held_out)
        chosen = choose_ema(state, held_out, self.engine) if state.half_lives else None
        record = monitor.evaluate(
            self.history, state.distiller, state.ema, state.step, state.seconds, self.engine.trackers, chosen
        )
        self.status.evaluated(record)
        keep_best(self.recipe, state, held_out, record, self.run, self.engine)
