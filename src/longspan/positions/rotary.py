"""Rotary position embeddings stretched to longer sequences, through Hugging Face's own rope parameters.

A rotary embedding turns the pair of dimensions ``i`` of a query or key at position ``m`` by the angle ``m *
theta_i``, ``theta_i = base^(-2i/d)``, ``d`` the rotary dimension. Every method here changes the frequencies
``theta_i`` so that positions up to a larger length ``L' = s * L`` meet angles that the model knows from its
original length ``L``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from longspan.positions.rotary_modules import (
    CONFIG_KEY,
    Model,
    fields_of,
    layer_types_of,
    parameters_of,
    prefix_of,
    rotary_modules,
    write_fields,
)

# Each method's options.
METHODS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "ntk": (),
    "dynamic": ("factor",),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}

# The rope types whose configuration holds the original length. Of "linear" nothing says whether
# max_position_embeddings is the length before or after.
TELLING = ("yarn", "longrope", "dynamic")

# Layers that attend within a window or a chunk: see `extend_rotary` for why they stay as they are.
LOCAL_LAYER_TYPES = ("sliding_attention", "chunked_attention")


def extend_rotary(
    model: Model,
    max_positions: int,
    method: str,
    *,
    layer_types: Sequence[str] | None = None,
    **options: Any,
) -> Model:
    """Stretch a model's rotary positions to a longer sequence, in place.

    With ``s = max_positions / L``, ``L`` the original length and ``d`` the rotary dimension (with a partial
    rotary factor, less than a head's):

    - ``"linear"``, position interpolation (Chen et al. 2023, arXiv:2306.15595): every frequency is divided by
      ``s``.
    - ``"ntk"``, NTK-aware scaling (bloc97 2023; Peng et al. 2023, section 3.1): the base becomes ``base *
      s^(d / (d-2))``, so that the lowest frequency is interpolated and the highest stays. Written as
      ``rope_theta``.
    - ``"dynamic"``, dynamic NTK (emozilla 2023): unchanged up to ``L``; in a sequence of ``l > L`` positions
      the base is ``base * (factor * l / L - (factor - 1))^(d / (d-2))``. Option ``factor`` (at least 1):
      ``s`` by default; 1 gives section 3.3 of Peng et al. 2023, where the base follows ``l / L``.
    - ``"yarn"`` (Peng et al. 2023, arXiv:2309.00071): frequencies that turn more than ``beta_fast`` (32)
      times within ``L`` stay, those that turn less than ``beta_slow`` (1) times are divided by ``s``, with a
      ramp between, linear in the dimension as in the authors' program. cos and sin are multiplied by
      ``attention_factor`` (``0.1 ln(s) + 1``).
    - ``"longrope"`` (Ding et al. 2024, arXiv:2402.13753): frequency ``i`` is divided by ``long_factor[i]`` in
      sequences longer than ``L`` and by ``short_factor[i]`` in others: lists of ``d / 2`` numbers, both
      required. cos and sin are multiplied by ``attention_factor`` (``sqrt(1 + ln(s) / ln(L))``). The first
      tokens that the paper can leave without interpolation are not in transformers' version.

    Which length a sequence has, for "dynamic" and "longrope", is said by the largest position of a batch: of
    packed documents whose positions restart, by the longest document. In transformers the base of "dynamic"
    never falls back before a batch of less than ``L`` positions comes.

    ``config.rope_parameters`` and ``config.max_position_embeddings`` follow, the buffers are made anew in
    float32 (as loading the model would make them) where they lie, and ``save_pretrained`` keeps it all. For
    "dynamic" ``config.max_position_embeddings`` stays ``L``: its formula reads ``L`` there.

    A model can be extended further by the same method: the factor then counts from its original length, and
    options of "yarn" that are not given stay as they are. Its original length is known where this function
    extended it, or where its rope type is "yarn", "longrope" or "dynamic", whose parameters tell it.

    Layers of their own rope parameters (ModernBERT, Gemma 3) that attend within a window are left alone by
    default: distances inside a window are those they were trained with, at any length of the sequence, and
    scaling would only blur them. ModernBERT itself was extended so, from 1024 to 8192 positions by the base
    of its global layers alone (Warner et al. 2024, arXiv:2412.13663), and Gemma 3 as well (arXiv:2503.19786).

    Args:
        model: a Hugging Face model with rotary positions: Llama, Mistral, Qwen2, ModernBERT, ... Sparse
            (`longspan.sparsify`) or not.
        max_positions: the longest sequence, in tokens; at least the present one. The original length itself
            changes nothing.
        method: one of the above.
        layer_types: the layer types to change, where the configuration has rope parameters for each; None:
            all that are not local.
        **options: the method's options, see above; None stands for the default.

    Returns:
        The same model, in the same mode, on the same device; no parameter is touched.

    Raises:
        ValueError: a length below the present one, an unknown method or option, a value out of range, a model
            without rotary positions, or one that is scaled by another method already.

    """
    given = check_rotary_options(method, options)
    if isinstance(max_positions, bool) or not isinstance(max_positions, int) or max_positions < 1:
        raise ValueError(f"max_positions must be a positive number of tokens, got {max_positions!r}")
    modules = rotary_modules(model)
    config = modules[0].config
    chosen = _chosen_layer_types(config, layer_types)
    present = _present(config, method, chosen)
    if max_positions < present.positions:
        raise ValueError(
            f"max_positions ({max_positions}) must be at least the {present.positions} positions that the "
            "model has: rotary positions are extended, not shrunk"
        )
    wanted = fields_of(config)
    for layer_type in chosen:
        nested = wanted["rope_parameters"]
        parameters = nested if layer_type is None else nested[layer_type]
        pairs = getattr(modules[0], f"{prefix_of(layer_type)}inv_freq").numel()
        changed = _scaled(parameters, method, max_positions, present, given, pairs)
        if layer_type is None:
            wanted["rope_parameters"] = changed
        else:
            nested[layer_type] = changed
    if max_positions == present.original:
        return model
    if method != "dynamic":
        wanted["max_position_embeddings"] = max_positions
    if "original_max_position_embeddings" in wanted:
        # Phi-3 keeps it here, and transformers then reads it here first.
        wanted["original_max_position_embeddings"] = present.original
    wanted[CONFIG_KEY] = {
        "method": method,
        "original_max_positions": present.original,
        "max_positions": max_positions,
        "layer_types": None if chosen == (None,) else list(chosen),
    }
    others = [name for name in layer_types_of(config) if name is not None and name not in chosen]
    write_fields(modules, wanted, keep=tuple(prefix_of(name) for name in others))
    return model


def rotary_positions(model: nn.Module) -> int:
    """Return for how many tokens a model's rotary positions are set.

    Raises:
        ValueError: the model has no rotary positions.

    """
    return _lengths(rotary_modules(model)[0].config).positions


def rotary_factor(model: nn.Module) -> float:
    """Return how many times its original length a model's rotary positions are set for.

    Raises:
        ValueError: the model has no rotary positions.

    """
    lengths = _lengths(rotary_modules(model)[0].config)
    return lengths.positions / lengths.original


def check_rotary_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a method and return those that are given, as plain numbers and lists.

    Raises:
        ValueError: an unknown method or option, a missing one, or a value out of range.

    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    allowed = METHODS[method]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(
            f"method {method!r} has no option {', '.join(unknown)}. Allowed: {', '.join(allowed) or 'none'}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("short_factor", "long_factor"):
        if name not in allowed:
            continue
        if name not in given:
            raise ValueError(f"{name} must be given for method {method!r}: a factor for each frequency")
        # A list of a configuration is a sequence, but no list that JSON can hold.
        values = given[name]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"{name} must be a list of numbers, got {values!r}")
        given[name] = [_positive(f"{name}[{index}]", value) for index, value in enumerate(values)]
    for name in ("beta_fast", "beta_slow", "attention_factor", "factor"):
        if name in given:
            given[name] = _positive(name, given[name])
    if given.get("factor", 1.0) < 1.0:
        raise ValueError(f"factor must be at least 1, got {given['factor']}")
    return given


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class _Present:
    """From which length a model comes, and for which one it is set: in tokens."""

    original: int
    positions: int


def _present(config: Any, method: str, chosen: tuple[str | None, ...]) -> _Present:
    """Read the lengths; raise ValueError where the model is scaled in another way than it is now to be."""
    name = type(config).__name__
    note = getattr(config, CONFIG_KEY, None)
    if note is not None:
        if note["method"] != method:
            raise ValueError(
                f"method must be {note['method']!r}, by which this model is extended already (from "
                f"{note['original_max_positions']} to {note['max_positions']} positions); got {method!r}"
            )
        before = (None,) if note["layer_types"] is None else tuple(note["layer_types"])
        if before != chosen:
            raise ValueError(
                f"layer_types must be {list(before)}, which are extended already; got {list(chosen)}"
            )
        return _lengths(config)
    by_type = {layer_type: parameters_of(config, layer_type) for layer_type in layer_types_of(config)}
    scaled = {key: value for key, value in by_type.items() if value["rope_type"] != "default"}
    if not scaled:
        return _lengths(config)
    types = sorted({value["rope_type"] for value in scaled.values()})
    if types != [method] or method not in TELLING or set(scaled) != set(chosen):
        raise ValueError(
            f"the rotary positions of this model are scaled already: {name}.rope_parameters has rope_type "
            f"{', '.join(types)}, and method {method!r} starts from rope_type default, or goes on from "
            f"{' or '.join(TELLING)} by the same method"
        )
    if any(parameters.get("mscale_all_dim") for parameters in scaled.values()):
        raise ValueError(
            f"{name}.rope_parameters has mscale_all_dim, with which each attention layer keeps a scale of "
            "its own: such models cannot be extended"
        )
    return _lengths(config)


def _lengths(config: Any) -> _Present:
    """Read the lengths, as far as the configuration tells them."""
    note = getattr(config, CONFIG_KEY, None)
    if note is not None:
        return _Present(note["original_max_positions"], note["max_positions"])
    length = config.max_position_embeddings
    lengths = [_Present(length, length)]
    for parameters in (parameters_of(config, layer_type) for layer_type in layer_types_of(config)):
        if parameters["rope_type"] in TELLING:
            # "dynamic" has no such key: it reads its original length from max_position_embeddings.
            original = parameters.get("original_max_position_embeddings") or length
            # Some configurations count max_position_embeddings before the scaling.
            reached = max(length, round(original * (parameters.get("factor") or 1.0)))
            lengths.append(_Present(original, reached))
    return lengths[-1]


def _scaled(
    parameters: dict[str, Any],
    method: str,
    max_positions: int,
    present: _Present,
    given: dict[str, Any],
    pairs: int,
) -> dict[str, Any]:
    """Return the rope parameters of one layer type; ``pairs`` is half its rotary dimension."""
    if method in ("ntk", "dynamic") and pairs < 2:
        raise ValueError(f"method {method!r} needs a rotary dimension of at least 4, got {2 * pairs}")
    for name in ("short_factor", "long_factor"):
        if name in given and len(given[name]) != pairs:
            raise ValueError(
                f"{name} must have {pairs} numbers, half the rotary dimension of {2 * pairs}; got "
                f"{len(given[name])}"
            )
    # `type` is the older name of rope_type.
    changed = {key: value for key, value in parameters.items() if key != "type"}
    if method == "ntk":
        # Powers of two factors multiply: from the present length, so that no original base need be kept.
        further = max_positions / present.positions
        changed["rope_theta"] = changed["rope_theta"] * further ** (pairs / (pairs - 1))
        return changed
    changed |= {"rope_type": method, "factor": max_positions / present.original, **given}
    if method in ("yarn", "longrope"):
        changed["original_max_position_embeddings"] = present.original
    if method == "yarn":
        fast, slow = changed.get("beta_fast") or 32.0, changed.get("beta_slow") or 1.0
        if fast <= slow:
            raise ValueError(f"beta_fast ({fast}) must be greater than beta_slow ({slow})")
    return changed


def _chosen_layer_types(config: Any, layer_types: Sequence[str] | None) -> tuple[str | None, ...]:
    known = layer_types_of(config)
    if layer_types is None:
        chosen = tuple(name for name in known if name not in LOCAL_LAYER_TYPES)
        if not chosen:
            raise ValueError(
                "layer_types must be given: all layers of this model are local "
                f"({', '.join(map(str, known))})"
            )
        return chosen
    if known == (None,):
        raise ValueError(
            f"layer_types must be None, since all layers of {type(config).__name__} share their rope "
            f"parameters; got {list(layer_types)}"
        )
    unknown = [name for name in layer_types if name not in known]
    if isinstance(layer_types, str) or unknown or not layer_types:
        raise ValueError(f"layer_types must be a list of {', '.join(map(str, known))}; got {layer_types!r}")
    return tuple(name for name in known if name in layer_types)
