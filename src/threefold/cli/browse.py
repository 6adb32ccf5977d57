"""`threefold browse`: a collection in a web browser, for as long as the command runs."""

from __future__ import annotations

import re
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli import options
from threefold.cli.opened import In, model_of
from threefold.cli.serve import require_packages
from threefold.cli.show import err, note
from threefold.errors import StoreError

if TYPE_CHECKING:
    from threefold.serve.server import Server


def browse(
    into: In,
    port: Annotated[int, typer.Option("--port", "-p", help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on: 127.0.0.1 is this machine only.")] = "127.0.0.1",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
) -> None:
    """Search a collection in a web browser, with the reasons of every hit. Nothing can be changed there."""
    require_packages("threefold browse")
    from threefold.opening import collection_folder

    name, at = model_of(into, None, model, revision, must_exist=True)
    with _alone(collection_folder(into)) as root:
        from threefold.serve.cores import share_cores

        share_cores()  # before the next lines import PyTorch
        from threefold.serve.app import CONTRACTS
        from threefold.serve.hosts import is_loopback
        from threefold.serve.run import serve
        from threefold.serve.settings import ServeConfig

        given = {"model": name, "revision": at, "device": device, "precision": precision, "host": host, "port": port}
        config = ServeConfig.from_dict({**given, "collections": str(root)}, "browse")
        private = is_loopback(host)
        reading = [one for one in CONTRACTS if one.scope in (None, "search")]

        def ready(server: Server, address: str) -> None:
            _hold(server, root)
            err.print(f"{into} is at {address}/ui", soft_wrap=True)
            if not private:
                note("whoever reaches this address may read the collection")
            note("Ctrl-C ends it")
            if open_page:  # beside the server: a browser of the terminal is waited for until it ends
                threading.Thread(target=_show, args=(f"{address}/ui",), daemon=True).start()

        serve(config, ready, reading, private=private)


def _hold(server: Server, root: Path) -> None:
    """Open the collection now: that another process has it, or that it is damaged, is said before anything is served,
    and nobody else writes to it while the command runs.
    """
    from threefold.serve.library import OPEN

    assert server.library is not None
    try:
        for name in server.library.names(OPEN):
            server.library.get(OPEN, name)
    except StoreError as error:
        raise type(error)(str(error).replace(f"{root / OPEN}/", "")) from error


def _show(address: str) -> None:
    if not webbrowser.open(address):
        note("there is no browser here that could be opened")


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A folder of collections with this one in it, under the name that it has as far as a server takes it."""
    from threefold.serve.library import OPEN

    with tempfile.TemporaryDirectory(prefix="threefold-") as root:
        name = re.sub(r"[^A-Za-z0-9_-]", "-", folder.name)[:64].lstrip("_-") or "collection"
        place = Path(root, OPEN, name)
        place.parent.mkdir()
        place.symlink_to(folder.absolute(), target_is_directory=True)
        yield Path(root)
