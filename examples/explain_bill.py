"""An agent that explains what a KV cache costs and saves, and which tenants and models take what. It can change nothing.

    pip install 'lmcache-agent-tools[agent]' langchain-anthropic
    python examples/explain_bill.py anthropic:claude-sonnet-4-5 prod

GPU-seconds and the time until more memory has paid for itself need `economics` in the cache's entry in caches.toml.
"""

import argparse
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel

from agent_tools import LMCacheToolkit, Operations

READS = ("get_status", "recommend", "list_tenants", "list_changes")
PROMPT = (
    "You explain to a manager what a KV cache of a language model costs and saves. Read status, recommendation, tenants and"
    " changes first. Give GPU-seconds an hour, memory, who takes what share, and what a change would bring. Name your window."
    " Never state a figure that no tool gave you."
)


def bill_agent(model: str | BaseChatModel, operations: Operations | None = None) -> Any:  # noqa: ANN401  a compiled graph
    """Return the agent: a chat model, or a name that `init_chat_model` takes, with four tools that read."""
    return create_agent(model, LMCacheToolkit(operations=operations).only(*READS).get_tools(), system_prompt=PROMPT)


def main() -> None:
    """Ask once, and print the answer."""
    parser = argparse.ArgumentParser(description="Explain what a cache costs and saves.")
    parser.add_argument("model", help="a name for init_chat_model, e.g. openai:gpt-5.5; its provider's package is installed")
    parser.add_argument("cache", help="a name in caches.toml")
    given = parser.parse_args()
    try:
        agent = bill_agent(given.model)
    except (ImportError, ValueError) as error:
        parser.error(f"the chat model {given.model!r} cannot be used: {str(error).splitlines()[0]}")
    question = f"What does the cache {given.cache} cost and save us, and why?"
    answer = agent.invoke({"messages": [("user", question)]})
    print(answer["messages"][-1].text)


if __name__ == "__main__":
    main()
