"""What the tools cost a model: tokens of their schemas, by a real tokenizer.

    python benchmarks/tool_tokens.py TOKENIZER.JSON

A `tokenizer.json` that needs no network is in the package anthropic 0.38.0: ``pip download --no-deps anthropic==0.38.0``, then
unpack ``anthropic/tokenizer.json`` from the wheel.
"""

import json
import sys

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from tokenizers import Tokenizer

from agent_tools import LMCacheToolkit


def tokens(tokenizer: Tokenizer, tool: BaseTool) -> int:
    """Return the tokens of one tool's schema, as an OpenAI-style request carries it."""
    return len(tokenizer.encode(json.dumps(convert_to_openai_tool(tool))).ids)


def main() -> None:
    """Print the tokens of each tool that an agent starts with, and of all tools."""
    tokenizer = Tokenizer.from_file(sys.argv[1])
    every = sum(tokens(tokenizer, tool) for tool in LMCacheToolkit().get_tools())
    start = {tool.name: tokens(tokenizer, tool) for tool in LMCacheToolkit().on_demand().get_tools()}
    for name, count in start.items():
        print(f"{count:6d}  {name}")
    print(f"{sum(start.values()):6d}  the set an agent starts with\n{every:6d}  all tools at once")


if __name__ == "__main__":
    main()
