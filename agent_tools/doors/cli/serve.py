"""The commands that serve the tools to other programs, until they are interrupted."""

from typing import Annotated

import typer

from .running import opened


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Other than loopback only with LMCACHE_AGENT_TOKEN set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8100,
) -> None:
    """Serve the REST routes and the report page.

    The routes are under /lmcache and the page is at /lmcache/report. Ctrl-C ends the service.
    """
    with opened(None) as (operations, _):
        try:
            from agent_tools.doors import rest
        except ImportError as error:
            raise _missing("serving needs FastAPI and uvicorn", "serve") from error
        rest.serve(operations, host, port)


def mcp(
    http: Annotated[
        bool, typer.Option(help="Serve at http://127.0.0.1:PORT/mcp instead of on standard input and output.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8101,
    read_only: Annotated[bool, typer.Option(help="Serve only the tools that change nothing.")] = False,
) -> None:
    """Serve the tools over MCP.

    The command ends when the client leaves or, with --http, on Ctrl-C.
    """
    with opened(None) as (operations, _):
        try:
            from agent_tools.doors import mcp as door
        except ImportError as error:
            raise _missing("MCP needs its SDK", "mcp") from error
        from agent_tools.caches.named_tokens import Tokens
        from agent_tools.tools.toolkit import LMCacheToolkit

        toolkit = LMCacheToolkit(operations=operations)
        tools = (toolkit.read_only() if read_only else toolkit).get_tools()
        if http:
            settings = operations.registry.settings
            door.serve_http(tools, port, Tokens(settings.token, settings.tokens), operations)
        else:
            door.serve_stdio(tools, operations)


def _missing(need: str, extra: str) -> Exception:
    from agent_tools.errors import UnsupportedError
    from agent_tools.extras import installing

    return UnsupportedError(f"{need}; {installing(extra)}")
