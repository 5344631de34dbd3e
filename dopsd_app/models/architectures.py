"""The architectures that this program knows, by the pipeline class that a model_index.json names."""

from dopsd_app.models.architecture import Architecture
from dopsd_app.models.klein_facts import KLEIN
from dopsd_app.models.z_image_facts import Z_IMAGE

ARCHITECTURES = {architecture.pipeline_class: architecture for architecture in (Z_IMAGE, KLEIN)}


def register(architecture: Architecture) -> None:
    """Makes one more architecture known in this process, or another one of a pipeline class."""
    ARCHITECTURES[architecture.pipeline_class] = architecture
