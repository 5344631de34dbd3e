"""Builds the page and serves it: `python app.py`, or a Hugging Face Space."""

from dopsd_app.gpus import settle_on_a_card
from dopsd_app.ui import build_app, launch_options, reach_own_server_directly

if __name__ == "__main__":
    settle_on_a_card()
    reach_own_server_directly()
    build_app().launch(**launch_options())
