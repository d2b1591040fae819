"""The agent bench: whether a chat model, with the LMCache tools alone, finds and mends what is wrong with several caches at once.

The caches are incidents of `benchmarks.incidents`, provoked on real processes under traffic; their names give nothing away.
`trial` runs a model on them, `answer` is the tool by which it reports, `record` writes down what came of it, judged by
the rules of the incident bench. Run from the repository root::

    make agent-bench MODEL=openai:gpt-5.5 [SCENARIOS="l1_too_small idle"]
"""
