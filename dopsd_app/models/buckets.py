"""The size that a run crops a picture to, for those who show it before anything is loaded."""

from collections.abc import Iterable

from dopsd_app.config import TrainConfig
from dopsd_app.data.crops import nearest_bucket
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import find_facts

USUAL_MULTIPLE = 16  # pixels: of every base model in the catalog


def training_sizes(config: TrainConfig, sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (height, width) in pixels that pictures of these widths and heights are cropped to in training.

    A base model that nothing is known of here yet counts as one of the usual kind.
    """
    try:
        multiple = find_facts(config.base_model, config.revision).sizes.side_multiple
    except BaseModelError:
        multiple = USUAL_MULTIPLE
    return [nearest_bucket(*size, config.resolution, multiple) for size in sizes]
