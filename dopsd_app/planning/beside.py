"""What a training's process can draw between two steps, by the figures of its own plan."""

from dataclasses import replace
from itertools import product

from dopsd_app.config import TrainConfig
from dopsd_app.jobs.beside import Offer
from dopsd_app.models.architecture import Sizes
from dopsd_app.planning.memory import Fitted, number_bytes, reckon
from dopsd_app.planning.plan import RESOLUTIONS

NO_ROOM = "there is no room for drawing beside it"


def make_offer(config: TrainConfig, sizes: Sizes, fitted: Fitted, sources: int, ran_out: int) -> Offer:
    """What fits into the budget of a run's plan beside what training keeps there.

    `sizes` are those of the run, with so many pictures to start from. Encoders are loaded and leave again
    before anything is drawn; where there is no room for all of them, they are read layer by layer. `ran_out`
    is the pixels at which memory ran out once, or 0: so large a picture is not offered.
    """
    plan, budget = fitted.plan, fitted.budget
    number, own_lora = number_bytes(config, budget.on_gpu), sizes.lora_parameters(config.rank)
    known = {config.resolution, *RESOLUTIONS}
    resolutions = sorted((side for side in known if not ran_out or side < ran_out), reverse=True)
    most = min(budget.device, budget.ran_out.get("drawing", budget.device))
    for by_layer, resolution in product((False, True), resolutions):
        drawn = replace(config, resolution=resolution)
        memory = reckon(drawn, sizes, replace(plan, encoders_by_layer=by_layer), budget.on_gpu)
        parts = dict(memory.parts)
        # Between two steps there is no gradient.
        resting = parts["Base model"] + parts["LoRA"] - 4 * own_lora
        lora_numbers = (most - memory.drawing) // number
        if memory.encoding + resting <= budget.device and lora_numbers >= own_lora:
            return Offer(plan.quantization, resolution, sources, lora_numbers, by_layer)
    return Offer(plan.quantization, refusal=NO_ROOM)
