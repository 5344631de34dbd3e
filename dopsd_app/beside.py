"""Drawing in a training's process, between two of its steps: the base model is there already."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image

from dopsd_app import generate
from dopsd_app.config import TrainConfig
from dopsd_app.errors import KnownFailure, is_out_of_memory
from dopsd_app.jobs import worker
from dopsd_app.jobs.beside import Offer, check_room, keep_offer, when_free, why_not
from dopsd_app.jobs.drawing import Drawing, wanted_by
from dopsd_app.jobs.events import Event
from dopsd_app.jobs.job import Job, RunError
from dopsd_app.jobs.kept_plan import keep_plan, read_kept_plan
from dopsd_app.jobs.runs import Run
from dopsd_app.method.adapters import remove_spare, room_for_a_spare_one, spare_adapter
from dopsd_app.method.processes import Processes
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.protocol import BaseModel, Conditioning, loaded
from dopsd_app.planning.beside import make_offer
from dopsd_app.planning.memory import Fitted

TOGETHER = "it is trained by several processes, which draw nothing beside it"
REMEMBERED = 4  # prompts that stay encoded: some megabytes each, which the plan does not count


class Beside:
    """Draws what waits, between the steps of a run; its offer tells those who ask what it can draw."""

    def __init__(self, run: Run, fitted: Fitted, processes: Processes):
        self.run, self.encoded = run, dict[str, Conditioning]()
        self.fitted, self.alone = fitted, processes.count == 1
        self.offered = self._make_offer()
        self._give(self.offered)

    def _make_offer(self) -> Offer:
        if not self.alone:
            return Offer(self.fitted.plan.quantization, refusal=TOGETHER)
        config, sources, kept = self.run.config, self.run.sources, read_kept_plan(self.run.path)
        sizes = find_facts(config.base_model, config.revision).sizes_for(config, sources)
        return make_offer(config, sizes, self.fitted, sources, kept.beside if kept else 0)

    def _give(self, offer: Offer) -> None:
        self.offer = offer
        keep_offer(self.run, offer)

    def draw_next(self, base_model: BaseModel) -> None:
        """Does the drawing that has waited longest, if one waits; whatever comes of it, training goes on."""
        if worker.do_beside(self.run, partial(self._draw, base_model=base_model), self._takes):
            free_memory()  # now that an error is gone, which may have held some

    def _takes(self, job: Job) -> bool:
        """Whether a drawing is this process's affair: it can draw it, or has to say that it cannot any more.

        What another process has accepted, or the next one can draw, waits for that.
        """
        try:
            drawing = Drawing(job.path)
            wanted = wanted_by(job.runs_dir, drawing.asked, len(drawing.sources))
            if not why_not(self.run, self.offer, wanted):
                return True
            if why_not(self.run, self.offered, wanted):  # never was
                return False
            check_room(job.runs_dir, wanted)
        except (KnownFailure, OSError):  # nobody else, or nobody at all: the person is told why
            return True
        return False

    def _draw(self, job: Job, base_model: BaseModel) -> Generator[Event, None, dict | None]:
        drawing = Drawing(job.path)
        wanted = wanted_by(job.runs_dir, drawing.asked, len(drawing.sources))
        if reason := why_not(self.run, self.offer, wanted):
            raise RunError(f"{self.run.id} is being trained, and {reason}. {when_free(job.runs_dir)}")
        try:
            model = _Lent(self.run.config, base_model, self.offer.encoders_by_layer, self.encoded)
            with model.lent():
                return (yield from worker.find_function(job)(job))
        except Exception as error:
            if is_out_of_memory(error):
                self._note_ran_out(wanted.config.resolution)
            raise
        finally:
            self.encoded = dict(list(self.encoded.items())[-REMEMBERED:])

    def _note_ran_out(self, resolution: int) -> None:
        """From now on only smaller pictures are drawn beside this run, after a resume too."""
        if kept := read_kept_plan(self.run.path):
            keep_plan(self.run.path, replace(kept, beside=resolution))
        self._give(self._make_offer())


class _Lent(LoadedModel):
    """A training's base model, for a drawing: as `LoadedModel`, and afterwards as it was."""

    def __init__(
        self, config: TrainConfig, base_model: BaseModel, by_layer: bool, encoded: dict[str, Conditioning]
    ):
        super().__init__(config, base_model=base_model)
        self.by_layer, self.encoded = by_layer, encoded

    @contextmanager
    def lent(self) -> Generator[None]:
        """Meanwhile the drawing jobs of this process draw with it."""
        with spare_adapter(self.base_model.transformer, "lora"):
            generate.drawing_cache.model = self
            try:
                yield
            finally:
                generate.drawing_cache.model = None
                self.free_encoders()

    def matches(self, config: TrainConfig, *, teaches: bool) -> bool:
        """It is lent only for what the offer covers."""
        return True

    def load_encoders(self) -> None:
        """Loads the encoders where they are not, in the way for which there is room."""
        if self.encoders:
            return
        free_memory()
        plan = self.base_model.memory_plan
        self.base_model.memory_plan = replace(plan, encoders_by_layer=self.by_layer)
        try:
            self.base_model.load_encoders()
        finally:
            self.base_model.memory_plan = plan
        self.encoders = True

    def load_transformer(self) -> None:
        """It is there; the encoders make room."""
        if self.encoders:
            self.free_encoders()
        if self.pipeline is None:
            self.pipeline = self.base_model.make_pipeline()
            self.pipeline.set_progress_bar_config(disable=True)

    def load_lora(self, lora: Path, strength: float) -> None:
        """Loads a LoRA file beside the student, and sets its strength."""
        with room_for_a_spare_one():
            super().load_lora(lora, strength)
        loaded(self.pipeline).enable_lora()

    def unload_lora(self) -> None:
        """The bare base again; the student stays where it is."""
        if self.loaded_lora:
            remove_spare(self.base_model.transformer, "lora")
            loaded(self.pipeline).disable_lora()
            self.loaded_lora = None

    def draw(
        self,
        conditioning: Conditioning,
        config: TrainConfig,
        seed: int,
        with_lora: bool = True,
        sources: Sequence[Image.Image] = (),
    ) -> Image.Image:
        """A picture by the official pipeline; see `LoadedModel`."""
        try:
            return super().draw(conditioning, config, seed, with_lora, sources)
        finally:
            if not self.loaded_lora:  # the student is not to be drawn with
                loaded(self.pipeline).disable_lora()
