"""Claims about all models at once: documented, immutable, closed, and the same after a trip through JSON."""

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agent_tools import models
from agent_tools.models import Bounds, CacheMetrics, ConfigUpdate, Gain, TokenCounts

MODELS = [model for name in models.__all__ if inspect.isclass(model := getattr(models, name)) and issubclass(model, BaseModel)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described_in_the_json_schema(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    parts = {model.__name__: schema, **{name: part for name, part in schema.get("$defs", {}).items() if "properties" in part}}
    silent = [
        f"{name}.{field}" for name, part in parts.items() for field, one in part["properties"].items() if not described(one)
    ]
    assert not silent
    assert schema["description"]


def described(field: dict[str, object]) -> bool:
    return bool(str(field.get("description", "")).strip())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_is_closed_to_unknown_fields(model: type[BaseModel]) -> None:
    assert model.model_json_schema()["additionalProperties"] is False


def test_a_value_cannot_be_changed() -> None:
    counts = TokenCounts(requested=3)
    with pytest.raises(ValidationError, match="frozen"):
        counts.requested = 4  # type: ignore[misc]


shares = st.floats(0.01, 1)
sizes = st.floats(0.1, 1e6)
updates = st.builds(
    ConfigUpdate,
    max_size_mb=sizes,
    eviction_watermark=st.none() | shares,
    eviction_ratio=st.none() | shares,
    eviction_policy=st.none() | st.sampled_from(models.EvictionPolicy),
    chunk_size=st.none() | st.integers(1, 4096),
    tenant_quotas_mb=st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1e6), max_size=3),
    l2_adapters=st.none()
    | st.lists(st.builds(models.L2Adapter, type=st.just("fs"), settings=st.just({"base_path": "/x"}))).map(tuple),
)


@given(updates)
def test_an_update_is_the_same_after_a_trip_through_json(update: ConfigUpdate) -> None:
    assert ConfigUpdate.model_validate(json.loads(json.dumps(update.model_dump(mode="json")))) == update
    assert ConfigUpdate.model_validate(update.known()) == update


def test_metrics_are_the_same_after_a_trip_through_json(metrics: CacheMetrics) -> None:
    assert CacheMetrics.model_validate(metrics.model_dump(mode="json")) == metrics
    assert CacheMetrics.model_validate_json(metrics.model_dump_json()) == metrics


@given(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)))
def test_a_gain_is_accepted_exactly_when_its_interval_holds_its_estimate(numbers: tuple[float, float, float]) -> None:
    lower, estimate, upper = numbers
    if lower <= estimate <= upper:
        assert Gain(lower=lower, estimate=estimate, upper=upper, method="").estimate == estimate
    else:
        with pytest.raises(ValidationError, match="the interval must contain its estimate"):
            Gain(lower=lower, estimate=estimate, upper=upper, method="")


bounds = st.builds(
    Bounds,
    min_size_mb=st.none() | st.floats(1, 10),
    max_size_mb=st.none() | st.floats(11, 20),
    min_watermark=st.floats(0.1, 0.4),
    max_watermark=st.floats(0.5, 1),
    min_ratio=st.floats(0.01, 0.1),
    max_ratio=st.floats(0.2, 1),
    allow_restart=st.booleans(),
)


@given(bounds, bounds, updates, st.floats(0.1, 0.9))
def test_narrowed_bounds_allow_a_growth_exactly_when_both_allow_it(
    operators: Bounds, of_run: Bounds, update: ConfigUpdate, share: float
) -> None:
    current = models.CacheConfig(max_size_mb=share * (update.max_size_mb or 1))
    # A run that names no largest size leaves the operator's in force.
    silent_on_size = of_run.model_copy(update={"max_size_mb": of_run.max_size_mb or 1e9})
    forbidden = operators.violation(update, current) or silent_on_size.violation(update, current)
    assert bool(operators.narrowed(of_run).violation(update, current)) == bool(forbidden)


@given(bounds, bounds)
def test_a_run_cannot_allow_a_restart_that_the_operator_does_not(operators: Bounds, of_run: Bounds) -> None:
    assert operators.narrowed(of_run).allow_restart == (operators.allow_restart and of_run.allow_restart)
