"""The printed report of `longspan.analysis.inspect`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longspan.analysis.inspection import Inspection
from longspan.analysis.picture import ranges
from longspan.analysis.reach import Reach
from longspan.analysis.rows import RowStatistics, row_statistics
from longspan.analysis.start import start_warnings
from longspan_kernels.layout import BlockLayout

# The most columns of a table that fit beside each other.
_COLUMNS = 9
# The most layers with one row each.
_ROWS = 12


def report(inspection: Inspection) -> RenderableType:
    """Return tables of patterns and reach, and the patterns' pictures, ready to print."""
    reached = inspection.reach
    parts: list[RenderableType] = [Text(inspection.title, style="bold"), _patterns(inspection)]
    how = (
        f"of a random sample of {reached.sources.size:,} of {reached.blocks:,} blocks of sources"
        if reached.sampled
        else "exact to the token"
    )
    if inspection.own_windows:
        how = ("a random sample, " if reached.sampled else "") + "of the patterns alone: the windows of the "
        how += "model's own local layers are not counted, so it reaches less"
    parts += [
        Text(f"\nReach: {how}", style="bold"),
        _by_distance(reached),
        Text(),
        _by_position(reached),
        Text(),
        _unreachable(reached),
    ]
    sentences = start_warnings(
        inspection.patterns, inspection.seq_len, causal=inspection.causal, known_reach=inspection.reach
    )
    parts += [Text(f"warning: {sentence}", style="yellow") for sentence in sentences]
    pictures = [Group(Text(name, style="bold"), Text(drawing)) for name, drawing in _drawings(inspection)]
    parts.append(Padding(Columns(pictures), (1, 2)))
    return Group(*parts)


def _patterns(inspection: Inspection) -> Table:
    """Return facts about each distinct pattern, and the operations of attention in all layers together."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    pairs = dense_pairs = 0
    for layout, numbers in _distinct(inspection):
        if layout is None:
            every = inspection.reach.all_pairs * next(
                (one.num_heads for one in inspection.patterns if one is not None), 1
            )
            table.add_row("dense layers", ranges(numbers))
            pairs += every * len(numbers)
            dense_pairs += every * len(numbers)
            continue
        pattern = inspection.patterns[numbers[0]]
        assert pattern is not None
        rows = row_statistics(layout, inspection.seq_len, inspection.causal)
        arguments = {name: value for name, value in pattern.to_dict().items() if name != "name"}
        table.add_row("pattern", pattern.name)
        table.add_row("  arguments", ", ".join(f"{name} {value}" for name, value in arguments.items()))
        table.add_row("  layers", f"{ranges(numbers)}; {_heads(layout)}")
        for name, value in _facts(layout, rows):
            table.add_row(f"  {name}", value)
        pairs, dense_pairs = (
            pairs + rows.kept_pairs * len(numbers),
            dense_pairs + rows.all_pairs * len(numbers),
        )
    flops = f"{pairs / dense_pairs:.2%} of dense"
    if inspection.head_dim:
        mine, dense = (4 * inspection.head_dim * count for count in (pairs, dense_pairs))
        flops += f": {_flop(mine)} of {_flop(dense)} a sequence, forward, heads of {inspection.head_dim}"
    table.add_row("attention's operations", flops)
    return table


def _facts(layout: BlockLayout, rows: RowStatistics) -> list[tuple[str, str]]:
    blocks = layout.heads * layout.q_blocks * layout.k_blocks
    return [
        ("density", f"{layout.density:.2%}: {layout.nnz:,} of {blocks:,} blocks of {layout.block} tokens"),
        ("pairs", f"{rows.pair_density:.2%} of the pairs of tokens that may be attended"),
        (
            "blocks of a row",
            f"{rows.minimum:,} at least, median {rows.median:,g}, {rows.maximum:,} at most; "
            f"{rows.empty:,} of {rows.rows:,} rows attend nothing",
        ),
        (
            "attention distance",
            f"{rows.mean_distance:,.1f} tokens in the mean (dense: {rows.all_mean_distance:,.1f})",
        ),
    ]


def _distinct(inspection: Inspection) -> list[tuple[BlockLayout | None, list[int]]]:
    layers: dict[BlockLayout | None, list[int]] = {}
    for number, layout in enumerate(inspection.layouts):
        layers.setdefault(layout, []).append(number)
    return list(layers.items())


def _heads(layout: BlockLayout) -> str:
    heads = "1 head" if layout.heads == 1 else f"{layout.heads} heads"
    if layout.layouts == 1:
        return heads if layout.heads == 1 else f"{heads} alike"
    return f"{heads} of {layout.layouts} different layouts"


def _flop(count: int) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e6:,.2f} MFLOP"


def _by_distance(reached: Reach) -> Table:
    """Return the share of pairs reached at each distance, one row per layer."""
    edges = _distances(reached.seq_len, reached.block)
    _, shares = reached.by_distance_bins(edges)
    names = [
        f"{first:,}" if last == first + 1 else f"{first:,}–{last - 1:,}" for first, last in pairwise(edges)
    ]
    table = Table(title="% of the pairs reached, by distance in tokens", title_justify="left")
    table.add_column("layers", justify="right")
    for name in ("all pairs", *names):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in _rows(reached):
        table.add_row(_layer(reached, layer), _percent(reached.share[layer]), *map(_percent, shares[layer]))
    return table


def _by_position(reached: Reach) -> Table:
    """Return the share of sources that reach each part of the sequence, one row per layer."""
    parts = np.unique(np.linspace(0, reached.blocks, min(reached.blocks, _COLUMNS - 1) + 1).astype(int))
    sources = "earlier tokens" if reached.causal else "tokens"
    table = Table(title=f"% of the {sources} that reach a token, by its position", title_justify="left")
    table.add_column("layers", justify="right")
    for first, last in pairwise(parts):
        end = min(last * reached.block, reached.seq_len) - 1
        table.add_column(f"{first * reached.block:,}–{end:,}", justify="right", no_wrap=True)
    possible = np.add.reduceat(reached.possible_pairs, parts[:-1])
    for layer in _rows(reached):
        pairs = np.add.reduceat(reached.reached_pairs[layer], parts[:-1])
        shares = np.divide(pairs, possible, out=np.full(pairs.shape, np.nan), where=possible > 0)
        table.add_row(_layer(reached, layer), *map(_percent, shares))
    return table


def _unreachable(reached: Reach) -> Text:
    which = "a token and an earlier one" if reached.causal else "tokens"
    head = f"Unreachable pairs of {which} after {reached.layers} layers"
    missing = reached.unreachable_pairs
    if not missing:
        return Text(f"{head}: none{' of those followed' if reached.sampled else ''}")
    examples = ", ".join(f"{source:,} to {token:,}" for source, token in reached.unreachable_examples(4))
    about = "about " if reached.sampled else ""
    share = f"{about}{missing:,} of {reached.all_pairs:,} ({missing / reached.all_pairs:.2%})"
    return Text(f"{head}: {share}" + (f", such as from token {examples}" if examples else ""))


def _drawings(inspection: Inspection) -> list[tuple[str, str]]:
    """Return name and picture of each distinct layout of a head, at most six."""
    drawings = []
    width = 64 if len(_distinct(inspection)) == 1 else 40
    for layout, numbers in _distinct(inspection):
        if layout is None:
            continue
        pattern = inspection.patterns[numbers[0]]
        assert pattern is not None
        head_layouts = layout.head_layouts.tolist()
        for distinct in dict.fromkeys(head_layouts):
            head = head_layouts.index(distinct)
            which = f", head {head}" if layout.layouts > 1 else ""
            layers = f", layers {ranges(numbers)}" if len(_distinct(inspection)) > 1 else ""
            drawings.append((f"{pattern.name}{layers}{which}", layout.draw(head, width)))
    return drawings[:6]


def _distances(seq_len: int, block: int) -> list[int]:
    """Return the edges of at most `_COLUMNS` bins: one block, then growing by a constant factor."""
    factor = 2
    while True:
        edges = [1]
        while edges[-1] * factor < seq_len or len(edges) == 1:
            step = min(block, seq_len) if len(edges) == 1 else edges[-1] * factor
            if step <= edges[-1] or step >= seq_len:
                break
            edges.append(step)
        edges = [*edges, seq_len] if seq_len > 1 else [0, 1]
        if len(edges) <= _COLUMNS:
            return edges
        factor *= 2


def _rows(reached: Reach) -> list[int]:
    """Return the layers that get a row: all of them, or the first ones and some of the others.

    Layers after the last change have no row.
    """
    last = next(layer for layer in range(reached.layers + 1) if reached.share[layer] == reached.share[-1])
    last = max(1, last)
    if last <= _ROWS:
        return list(range(1, last + 1))
    return sorted({*range(1, 5), *np.linspace(5, last, _ROWS - 4).astype(int).tolist()})


def _layer(reached: Reach, layer: int) -> str:
    unchanged = layer < reached.layers and reached.share[layer] == reached.share[-1]
    return f"{layer}–{reached.layers}" if unchanged else str(layer)


def _percent(share: float) -> str:
    """Format a share in %; only exact 0 and 1 are printed as 0 and 100."""
    if np.isnan(share):
        return "–"
    if share in (0, 1):
        return f"{share * 100:.0f}"
    return f"{min(max(100 * share, 0.01), 99.99):.2f}"
