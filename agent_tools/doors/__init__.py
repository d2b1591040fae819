"""The ways in from outside: command line, REST, MCP, and who may use them."""
