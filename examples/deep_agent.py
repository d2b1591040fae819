"""A sub-agent of deepagents that looks after the cache: it starts with a few tools, finds the others, and asks before it changes.

    pip install deepagents 'lmcache-agent-tools[agent]'
    python examples/deep_agent.py anthropic:claude-sonnet-4-5 "Is the cache default healthy?"

The main agent hands questions about the cache to the sub-agent. A tool that changes something waits for a person, through
LangChain's `HumanInTheLoopMiddleware`, which deepagents adds for `interrupt_on`.
"""

import argparse
from pathlib import Path
from typing import Any

from agent_tools import LMCacheToolkit, Operations

SKILL = Path(__file__).parents[1] / "SKILL.md"


def cache_subagent(operations: Operations | None = None) -> dict[str, Any]:
    """Return the sub-agent as deepagents takes it: its prompt is SKILL.md, its tools are those to start with."""
    toolkit = LMCacheToolkit(operations=operations).requiring_approval().on_demand()
    return {
        "name": "lmcache",
        "description": "Looks after LMCache KV caches: health, hit rate, advice, changes. Ask it for one cache at a time.",
        "system_prompt": SKILL.read_text(encoding="utf-8").partition("---\n\n")[2],
        "tools": toolkit.get_tools(),
        "interrupt_on": toolkit.interrupt_on(),
    }


def main() -> None:
    """Ask a question, and a person where a tool wants to change something."""
    from deepagents import create_deep_agent  # noqa: PLC0415  only this program needs it
    from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415
    from langgraph.types import Command  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Ask a deep agent about a cache.")
    parser.add_argument("model", help="a name for init_chat_model, e.g. openai:gpt-5.5; its provider's package is installed")
    parser.add_argument("question")
    given = parser.parse_args()
    try:
        agent = create_deep_agent(model=given.model, subagents=[cache_subagent()], checkpointer=InMemorySaver())
    except (ImportError, ValueError) as error:
        parser.error(f"the chat model {given.model!r} cannot be used: {str(error).splitlines()[0]}")
    config: Any = {"configurable": {"thread_id": "1"}}
    answer = agent.invoke({"messages": [("user", given.question)]}, config)
    while "__interrupt__" in answer:
        asked = answer["__interrupt__"][0].value["action_requests"]
        for one in asked:
            print(one["name"], one["args"])
        kind = "approve" if input("approve? [y/N] ").lower() == "y" else "reject"
        answer = agent.invoke(Command(resume={"decisions": [{"type": kind}] * len(asked)}), config)
    print(answer["messages"][-1].text)


if __name__ == "__main__":
    main()
