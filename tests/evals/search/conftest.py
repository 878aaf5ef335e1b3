"""Three models of which the second was tuned in its text tower alone, the third in both."""

import contextlib
import dataclasses
import socket
import threading

import numpy as np
import pytest
import uvicorn

from evals.search import serve
from evals.search.live import Live
from evals.search.ranking import PhotoFolder


@pytest.fixture(scope="session")
def three_models(tiny_model, other_model):
    rng = np.random.default_rng(7)
    projection = tiny_model.params["text_projection"]
    text = rng.standard_normal(projection.shape).astype(np.float32)
    params = tiny_model.params | {"text_projection": text}
    base = dataclasses.replace(tiny_model, name="base")
    return [base, dataclasses.replace(base, name="text <b>tuned</b>", params=params), other_model]


@pytest.fixture(scope="module")  # the patch lasts as long
def live(three_models, photos, tmp_path_factory):
    """They, and 12 photos."""
    from tiny_runs import use_one_device

    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        cache = tmp_path_factory.mktemp("live")
        yield Live(three_models, PhotoFolder(photos.data), cache=cache)


@pytest.fixture(scope="session")
def served():
    """Function of a `Live`, and of a port, to a context in which the page has this address."""

    @contextlib.contextmanager
    def serving(live, port: int = 0):
        server = serve.Server(live, 6, ["a cat", "no <b>cat</b>"], is_loopback=True)
        options = {"lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 1}
        running = uvicorn.Server(uvicorn.Config(server.app, **options))
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", port))
            bound.listen()
            thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
            thread.start()
            try:
                yield f"http://localhost:{bound.getsockname()[1]}/"
            finally:
                running.should_exit = True
                thread.join(30)

    return serving
