"""The same where nothing may grow: the operator is told which model starves, and what it needs."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server

from .model_starves import ENGINES, two_models

INCIDENT = Incident(
    name="model_starves_and_bounded",
    story="a model with large chunks finds nearly nothing again beside one with small ones, and nothing may be changed",
    stage=Server(l1_mb=16, engines=ENGINES),
    traffic=two_models,
    bounds=Bounds(min_watermark=0.8, max_watermark=0.8, min_ratio=0.2, max_ratio=0.2),
    expected=Expected(
        symptoms=frozenset({SymptomCode.MODEL_STARVES}), action=Action.OPERATOR, told="The model big has a token hit rate of"
    ),
)
