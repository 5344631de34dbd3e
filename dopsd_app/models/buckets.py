"""What decides the size that a run crops pictures to, for those who crop before anything is loaded."""

from dopsd_app.config import TrainConfig
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import find_facts

USUAL_MULTIPLE = 16  # pixels: of every base model in the catalog


def side_multiple(config: TrainConfig) -> int:
    """The pixels that each side is a multiple of; the usual ones of a base that nothing is known of yet."""
    try:
        return find_facts(config.base_model, config.revision).sizes.side_multiple
    except BaseModelError:
        return USUAL_MULTIPLE
