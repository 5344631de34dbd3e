"""Builds the page and serves it: `python app.py`, or a Hugging Face Space."""

from dopsd_app.ui import build_app, launch_options

if __name__ == "__main__":
    build_app().launch(**launch_options())
