"""The page: five steps from pictures to a published LoRA. It reads folders and never imports torch."""

import logging
import os
import re
import sys
from urllib.request import getproxies

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dopsd_app.hub.access import this_space, trusted_hosts
from dopsd_app.ui.endpoints import add_endpoints
from dopsd_app.ui.page import add_page
from dopsd_app.ui.server.background import start_background_threads
from dopsd_app.ui.server.delivery import Delivery
from dopsd_app.ui.server.doors import Doors
from dopsd_app.ui.server.foreign_pages import ForeignPages
from dopsd_app.ui.server.guard import GuardedBlocks
from dopsd_app.ui.server.picture_files import PictureFiles
from dopsd_app.ui.server.schemas import keep_schemas
from dopsd_app.ui.server.streams import Streams
from dopsd_app.ui.theme import CSS, theme
from dopsd_app.ui.visitors import NO_ZERO_GPU

logger = logging.getLogger(__name__)
BETWEEN_LOOKS = 0.02  # seconds: no person feels them


def build_app() -> gr.Blocks:
    """The page with its endpoints, ready for `launch(**launch_options())`; its background threads run."""
    if (space := this_space()) is not None and space.zero_gpu:
        logger.warning(NO_ZERO_GPU)  # such a Space ends a program that borrows no GPU: its log says why
    keep_schemas()
    # After each call, Gradio makes a table of how long all of them took, for a page that is closed here
    # (`enable_monitoring`).
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))
    # Every hour, what browsers may fetch (drawn pictures, copies of LoRA files) goes when it is a day old.
    title = "D-OPSD LoRA trainer"
    with GuardedBlocks(title=title, analytics_enabled=False, delete_cache=(3600, 86_400)) as app:
        add_endpoints()  # first: an event of the page would take a name, and the endpoint get a number
        add_page(app)
    # Gradio looks a thousand times a second whether there is anything to do (on Windows 20 times): a twelfth
    # of a core, taken from whoever trains on it.
    app._queue.sleep_when_free = max(app._queue.sleep_when_free, BETWEEN_LOOKS)
    start_background_threads()
    return app


def launch_options() -> dict:
    """How the page is served: to trusted hosts only, without history or tracking."""
    return {
        "theme": theme,
        "css_paths": CSS,
        # Gradio reads these out by their keys, for it has words for neither, in no language.
        "i18n": gr.I18n(en={"common.complete": "Done", "common.upload": "Upload"}),
        "run_history": False,  # it would keep inputs, passwords included, as plain text in the browser
        "max_file_size": "1gb",  # a zip of many pictures: how large each may be is asked when it is read
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "enable_monitoring": False,  # it would be open to every visitor
        "show_error": False,  # unexpected errors stay in the server's log
        "state_session_capacity": 100,  # each tab that was opened takes a megabyte, for good
        "app_kwargs": {
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=trusted_hosts()),
                Middleware(ForeignPages),
                Middleware(Doors),
                Middleware(Streams),
                Middleware(Delivery),
                Middleware(PictureFiles),
            ]
        },
    }


def reach_own_server_directly() -> None:
    """Keeps this program's own address out of any proxy: Gradio asks its server over HTTP when it starts.

    The Hub is still asked through the proxy, and what the person had kept out of it stays out. Gradio asks
    `localhost` for a page that is open to the network (0.0.0.0), else the name it is served at.
    """
    proxies = getproxies()
    if not proxies.keys() - {"no"}:
        return
    kept_out = proxies.get("no", "").split(",")
    own = ["localhost", "127.0.0.1", "::1", os.environ.get("GRADIO_SERVER_NAME", "")]
    # In brackets, as Gradio needs an IPv6 address, httpx would refuse it.
    names = [re.sub(r"^\[(.*)\]$", r"\1", name.strip()) for name in kept_out + own]
    proxies["no"] = ",".join(filter(None, names))
    # All of them: Windows and macOS keep proxies in their settings, and Python looks there only while no
    # variable speaks of proxies. In lower case: Python then passes over the other spelling.
    os.environ.update({f"{kind}_proxy": address for kind, address in proxies.items()})
