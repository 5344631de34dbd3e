"""What Gradio tells callers of an upload button, worked out once."""

import gradio as gr

_work_out = gr.UploadButton.api_info
_known: dict[str, dict] = {}


def keep_schemas() -> None:
    """From now on the schema of what an upload button takes is worked out once for each kind of button.

    Gradio works it out for every such button of every tab that is opened, and at every answer that changes
    one: of the 0.4 s of a processor that opening the page took, this was more than half.
    """
    # ty: ignore[invalid-assignment]
    gr.UploadButton.api_info = _schema


def _schema(button: gr.UploadButton) -> dict:
    if button.file_count not in _known:
        _known[button.file_count] = _work_out(button)
    return _known[button.file_count]
