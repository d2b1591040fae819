"""The operations as LangChain tools."""
