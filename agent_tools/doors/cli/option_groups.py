"""Options that several commands share, each group defined once as a dataclass."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from agent_tools.prediction.model_kv import ModelKv


@dataclass(frozen=True)
class ModelOptions:
    """What KV a model makes, and the room that the engine has for it."""

    model: Annotated[Path | None, typer.Option(help="The model's config.json, or its folder.")] = None
    kv_bytes_per_token: Annotated[
        float | None, typer.Option(min=1, help="In place of the model: measured KV bytes of a token, over all ranks.")
    ] = None
    world_size: Annotated[int, typer.Option(min=1, max=255, help="Tensor-parallel ranks of the engine.")] = 1
    kv_dtype: Annotated[str, typer.Option(help="Data type of the KV cache, as vLLM's --kv-cache-dtype.")] = "auto"
    gpu_free_gb: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="GB that each GPU has for KV (vLLM's log: Available KV cache memory): also say what LMCache saves beyond the"
            " engine.",
        ),
    ] = None

    def kv(self) -> "ModelKv":
        """Return the KV of the model.

        Raises:
            WorkloadError: As `chosen_kv`.
        """
        from agent_tools.prediction.model_kv import chosen_kv

        return chosen_kv(self.model, self.kv_bytes_per_token, ranks=self.world_size, kv_dtype=self.kv_dtype)


def with_options(**groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of each group, a dataclass, in place of its parameter of that name."""
    shared = {name: _parameters(group) for name, group in groups.items()}

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        taken = [
            option
            for own in signature.parameters.values()
            for option in shared.get(own.name, [own.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
        ]

        def run(**given: Any) -> None:  # noqa: ANN401  options of any type
            made = {name: groups[name](**{one.name: given.pop(one.name) for one in options}) for name, options in shared.items()}
            command(**given, **made)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__annotations__ = {one.name: one.annotation for one in taken}  # Typer reads both
        run.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
        return run

    return decorated


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(group)
    ]
