"""Let a chat model look after several caches at once, each with an incident, and add a line to the results."""

import argparse
from pathlib import Path

from langchain.chat_models import init_chat_model

from benchmarks.incidents.incident import Engines, Incident, Vllm
from benchmarks.incidents.scenarios import incidents
from benchmarks.prediction import machine

from .record import STORE, save
from .trial import MINUTES, run

CHOSEN = ("l1_too_small", "watermark_freezes", "prefix_diverges_early", "healthy_under_load")
"""A cause for a live change, another that more memory does not cure, one for the application's owner, and a healthy cache."""


def named(chosen: tuple[str, ...], known: dict[str, Incident]) -> dict[str, Incident]:
    """Return incidents by the names that the model sees: ``a``, ``b``, ... in this order."""
    return {chr(ord("a") + number): known[name] for number, name in enumerate(chosen)}


def main() -> None:
    """Run one trial, print its scores and where its line is."""
    # Of those with a real vLLM and of several workers, two at once are too much for a machine of two cores.
    known = {name: one for name, one in incidents().items() if not isinstance(one.stage, Engines | Vllm)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent_bench", description=__doc__)
    parser.add_argument("model", help="a name for init_chat_model, e.g. openai:gpt-5.5; its provider's package is installed")
    parser.add_argument("--scenarios", nargs="+", choices=sorted(known), default=list(CHOSEN), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long the traffic goes on")
    parser.add_argument("--store", type=Path, default=STORE, help="the file of JSON lines that the result is added to")
    given = parser.parse_args()
    try:
        model = init_chat_model(given.model)
    except (ImportError, ValueError) as error:
        parser.error(f"the chat model {given.model!r} cannot be used: {str(error).splitlines()[0]}")
    kept = save(run(model, given.model, named(tuple(given.scenarios), known), given.minutes), machine(), given.store)
    for one in kept["feedback"]:
        score = "unknown" if one["score"] is None else f"{one['score']:g}"
        print(f"{one['key']}: {score}" + (f" ({one['comment']})" if one["comment"] else ""))
    print(f"added to {given.store}")


if __name__ == "__main__":
    main()
