"""A run's settings as a draft holds them: its preset, and what differs from that."""

from dataclasses import asdict

from dopsd_app.config import EDIT, KINDS, SUBJECT, Preset, TrainConfig, list_presets
from dopsd_app.data.drafts import Draft, set_settings

OF_PICTURES = ("name", "trigger_word", "preview_prompts")  # are about a draft's own pictures


def draft_settings(config: TrainConfig, edits: bool) -> dict:
    """What a draft must hold to start a run like this: "preset" and "kind", and what differs from the preset.

    Which preset a run began with is not kept: it is the one that the fewest settings differ from.
    """
    settings = asdict(config)

    def differences(preset: Preset) -> dict:
        usual = {**asdict(TrainConfig()), **preset.settings}
        return {name: value for name, value in settings.items() if value != usual[name]}

    suited = [preset for preset in list_presets() if preset.name.endswith(EDIT) == edits]
    presets = [(preset, differences(preset)) for preset in suited]
    preset, changes = min(presets, key=lambda pair: _likely(*pair))
    kind = next((kind for kind in KINDS if preset.name.endswith(kind)), SUBJECT)
    return {"preset": preset.name, "kind": kind, **changes}


def _likely(preset: Preset, changes: dict) -> tuple:
    """The less, the likelier did a run with these changes come from the preset; most are of a subject."""
    return "base_model" in changes, len(changes), not preset.name.endswith(SUBJECT)


def take_settings(draft: Draft, config: TrainConfig) -> Draft:
    """Gives a draft the settings of a run in place of its own; its pictures and what is said of them stay.

    Whether it is an edit is for its pictures to say: the settings are then as near as those of the other can
    be.
    """
    own = {name: None for name in draft.settings if name not in OF_PICTURES}
    taken = draft_settings(config, edits=draft.kind == EDIT)
    changes = {name: value for name, value in taken.items() if name not in OF_PICTURES}
    return set_settings(draft, **{**own, **changes})
