import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from tests.support.image_host import ImageHost


@pytest.fixture
def host() -> Iterator[str]:
    ImageHost.seen.clear()
    ImageHost.answers.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
