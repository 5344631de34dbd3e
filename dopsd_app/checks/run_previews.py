"""What a run shows of itself, and when: drawn between two steps."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from dopsd_app.checks.health import HealthMeter
from dopsd_app.checks.preview_steps import early_samples, early_steps, preview_steps
from dopsd_app.checks.previews import draw_bases, draw_pairs, save_bases, save_rollout, save_samples
from dopsd_app.jobs.events import HealthMeasured, PreviewSaved, Warned
from dopsd_app.jobs.runs import Run
from dopsd_app.method.encode import EncodedPrompt
from dopsd_app.models.protocol import BaseModel
from dopsd_app.progress import PhaseProgress


class RunPreviews:
    """The previews of a run; `shown` of the prompts can be seen, the others are for the health alone."""

    def __init__(
        self,
        run: Run,
        base_model: BaseModel,
        prompts: Sequence[EncodedPrompt],
        shown: int,
        meter: HealthMeter,
    ):
        self.run, self.base_model, self.meter = run, base_model, meter
        self.prompts, self.shown = prompts, prompts[:shown]
        self.config = run.config
        self._told = False  # the base's pictures, by this process
        self._whole, self._early, self._early_samples = (
            frozenset(steps(self.config)) for steps in (preview_steps, early_steps, early_samples)
        )

    def due(self, step: int) -> bool:
        """Whether anything is shown of this step, if nobody asks for it."""
        return step in self._whole or step in self._early

    def before(self, step: int) -> Iterator[PhaseProgress | PreviewSaved]:
        """What the base model makes of the prompts: drawn once, before the first step that follows."""
        if not self.config.preview_every:
            return
        for number in draw_bases(self.run, self.base_model, self.config, self.shown):
            yield PhaseProgress("drawing", number, len(self.shown))
        yield from self._tell_bases()
        yield PhaseProgress("training", step, self.config.steps)

    def of(
        self, step: int, rollout_states: Sequence[tuple[Tensor, Tensor]], asked: bool
    ) -> Iterator[PreviewSaved | HealthMeasured | Warned]:
        """The roll-out of this very step, the samples and, of a whole preview, the health."""
        run, base_model, config = self.run, self.base_model, self.config
        if rollout_states:
            yield save_rollout(run, step, base_model, rollout_states)
        if asked or step in self._whole:
            pairs = draw_pairs(run, base_model, config, self.prompts)
            yield from self._tell_bases()
            yield save_samples(run, step, self.shown, [lora for _, lora in pairs][: len(self.shown)])
            yield from self.meter.measure(step, pairs)
        elif step in self._early_samples:
            pairs = draw_pairs(run, base_model, config, self.shown)
            yield from self._tell_bases()
            yield save_samples(run, step, self.shown, [lora for _, lora in pairs])

    def _tell_bases(self) -> Iterator[PreviewSaved]:
        """Once: nobody has seen them where none are drawn before the first step, or where that failed."""
        if not self._told:
            yield from save_bases(self.run, self.shown)
            self._told = True
