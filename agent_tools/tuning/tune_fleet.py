"""The subgraph that tunes many servers: read all -> group -> recommend -> (approve) -> canary -> batches -> keep or undo.

The graph checkpoints each server's plan, change and verification as soon as they exist. After a crash, the run continues where it
stopped. A plan is carried out only once, even if its step runs again.
"""

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph

from agent_tools.operations import Operations, shared_operations

from . import fleet_nodes as nodes
from .fleet_state import FleetContext, FleetInput, FleetOutput, FleetState, FleetView


def build_tune_fleet(*, operations: Operations | None = None) -> StateGraph[FleetState, FleetContext, FleetInput, FleetOutput]:
    """Return the uncompiled graph, so that the host can choose checkpointer, store and names.

    Args:
        operations: Operations on your own caches. The default is the process-wide operations on caches.toml, which are created
            when the first node runs.
    """

    def chosen() -> Operations:
        return operations or shared_operations()

    builder = StateGraph(FleetState, context_schema=FleetContext, input_schema=FleetInput, output_schema=FleetOutput)
    for step, on_error, destinations, label in (
        (nodes.list_servers, nodes.stopped, ("read", "report"), "List servers"),
        (nodes.read, nodes.left_out, (), "Read a server"),
        (nodes.recommend, nodes.stopped, ("approve", "next_batch", "report"), "Group and recommend"),
        (nodes.next_batch, nodes.stopped, ("plan", "report"), "Next servers"),
        (nodes.plan, nodes.failed, ("change", "next_batch"), "Plan a server"),
        (nodes.change, nodes.failed, ("verify", "next_batch"), "Change a server"),
        (nodes.verify, nodes.failed, ("roll_back", "next_batch"), "Verify a server"),
        (nodes.roll_back, nodes.failed, ("next_batch",), "Roll a server back"),
    ):
        node = nodes.node(step, chosen, on_error)
        builder.add_node(step.__name__, node, input_schema=FleetView, destinations=destinations, metadata={"label": label})
    builder.add_node(
        "approve",
        RunnableLambda(nodes.approve),  # a plain function could not interrupt an async run on Python 3.10
        input_schema=FleetView,
        destinations=("next_batch", "report"),
        metadata={"label": "Approve"},
    )
    builder.add_node("report", nodes.report, input_schema=FleetView, metadata={"label": "Report"})
    builder.add_edge(START, "list_servers")
    builder.add_edge("read", "recommend")
    builder.add_edge("report", END)
    return builder


tune_fleet = build_tune_fleet().compile(name="tune_fleet")
"""The compiled graph. It uses its host's checkpointer and store. Without a checkpointer, mode `approve` changes nothing."""
