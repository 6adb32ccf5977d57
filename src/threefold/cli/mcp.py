"""`threefold mcp`: a collection as tools of an agent, over standard input and output."""

from __future__ import annotations

from threefold.cli import options
from threefold.cli.opened import In, Url, model_of


def mcp(
    into: In,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
) -> None:
    """Let an agent search and read a collection: a server of the Model Context Protocol, which its program starts."""
    from threefold.collection import Collection
    from threefold.integrations.mcp import server

    encoder = options.open_encoder(*model_of(into, url, model, revision, must_exist=True), device, precision)

    def opened() -> Collection:
        return Collection(into, encoder, create=False, url=url)

    opened().close()  # what cannot be opened is an error now, and not at the first question
    server(opened, into).run("stdio")
