"""The loops of `sampled_curve`: counting all chunks of a log in a sketch, and following the sampled ones."""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_MIX, _SPREAD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x9E3779B97F4A7C15)


@compiled
def _mixed(key: int, seed: int) -> np.uint64:
    """Return 64 evenly spread bits (the finaliser of splitmix64)."""
    z = np.uint64(key) + (np.uint64(seed) + np.uint64(1)) * _SPREAD
    z = (z ^ (z >> np.uint64(30))) * _MIX
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _unit(key: int, seed: int) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return float(_mixed(key, seed) >> np.uint64(11)) / 9007199254740992.0


@compiled
def count(keys: Keys, sketch: npt.NDArray[np.uint16], registers: npt.NDArray[np.uint8]) -> None:
    """Count each key with conservative update, and enter it into the registers of HyperLogLog."""
    mask = np.uint64(sketch.shape[1] - 1)
    places = np.empty(sketch.shape[0], np.int64)
    for key in keys:
        least = 65535
        for row in range(sketch.shape[0]):
            places[row] = np.int64(_mixed(key, 1000 + row) & mask)
            least = min(least, sketch[row, places[row]])
        if least < 65535:
            for row in range(sketch.shape[0]):
                if sketch[row, places[row]] == least:
                    sketch[row, places[row]] = least + 1
        bits = _mixed(key, 999)
        place = np.int64(bits & np.uint64(len(registers) - 1))
        rest = bits >> np.uint64(20)
        zeros = 1
        while zeros < 44 and not rest & np.uint64(1):
            zeros += 1
            rest >>= np.uint64(1)
        registers[place] = max(registers[place], zeros)


@compiled
def _counted_of(key: int, sketch: npt.NDArray[np.uint16]) -> int:
    """Return how often the sketch counted a key; never too few, sometimes too many."""
    mask = np.uint64(sketch.shape[1] - 1)
    least = 65535
    for row in range(sketch.shape[0]):
        least = min(least, sketch[row, np.int64(_mixed(key, 1000 + row) & mask)])
    return least


@compiled
def _slot_of(key: int, keys: Keys, last: Int64) -> int:
    """Return the slot of a key, or the empty slot in which it would be."""
    slot = np.int64(_mixed(key, 998) & np.uint64(len(keys) - 1))
    while last[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return int(slot)


@compiled
def _sum_of(tree: Floats, position: int) -> float:
    """Return the sum of the weights at positions 1 to `position` (Fenwick 1994)."""
    total = 0.0
    while position > 0:
        total += tree[position]
        position &= position - 1
    return total


@compiled
def _add_to(tree: Floats, position: int, amount: float) -> None:
    """Add an amount to the weight at a position."""
    while position < len(tree):
        tree[position] += amount
        position += position & -position


@compiled
def rebuild(tree: Floats, last: Int64, weights: Floats) -> None:
    """Fill an empty tree with the weights of the followed chunks at their positions."""
    for slot in range(len(last)):
        if last[slot] >= 0 and weights[slot, 0] > 0:
            _add_to(tree, last[slot], weights[slot, 0])


@compiled
def move(keys: Keys, last: Int64, weights: Floats, new_keys: Keys, new_last: Int64, new_weights: Floats) -> None:
    """Enter all followed chunks into an empty, larger table."""
    for slot in range(len(keys)):
        if last[slot] >= 0:
            to = _slot_of(keys[slot], new_keys, new_last)
            new_keys[to], new_last[to] = keys[slot], last[slot]
            new_weights[to, 0], new_weights[to, 1] = weights[slot, 0], weights[slot, 1]


@compiled
def follow(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  one pass over the chunks: input, choice of the sample, state
    keys: Keys,
    offsets: Int64,
    start: int,
    sketch: npt.NDArray[np.uint16],
    share: float,
    tau: float,
    seed: int,
    bin_size: float,
    known: Keys,
    last: Int64,
    weights: Floats,
    tree: Floats,
    hits: Floats,
    state: Int64,
    total: Floats,
) -> int:
    """Follow the sampled chunks of lookups from `start` on. Return the next lookup: earlier than the last if room ran out.

    `weights` are what a chunk stands for: distinct chunks in a distance, and hits. `hits` gets the hits by distance. `state` is
    the latest position in time and the number of followed chunks, `total` the weight of all chunks of the sample for distances.
    """
    longest = 0
    for r in range(start, len(offsets) - 1):
        longest = max(longest, offsets[r + 1] - offsets[r])
    found, fresh = np.empty(longest, np.int64), np.empty(longest, np.uint64)
    for r in range(start, len(offsets) - 1):
        if state[0] + 1 >= len(tree) or 2 * (state[1] + offsets[r + 1] - offsets[r]) > len(known):
            return r
        seen, new = 0, 0
        run, inside = np.int64(-1), 0.0
        for i in range(offsets[r], offsets[r + 1]):
            key = keys[i]
            slot = _slot_of(key, known, last)
            if last[slot] < 0:
                if _unit(key, 10 + 2 * seed) < share:
                    fresh[new] = key
                    new += 1
                elif tau > 0:
                    again = _counted_of(key, sketch) - 1
                    if again > 0 and _unit(key, 11 + 2 * seed) < again / tau:
                        fresh[new] = key
                        new += 1
                continue
            if last[slot] != run:
                run, inside = last[slot], 0.0
            if weights[slot, 1] > 0:
                distance = total[0] - _sum_of(tree, last[slot]) + inside
                place = int(distance / bin_size)
                hits[place if place < len(hits) else len(hits) - 1] += weights[slot, 1]
            inside += weights[slot, 0]  # shallower chunks of the same earlier request were touched after deeper ones
            found[seen] = slot
            seen += 1
        if seen == 0 and new == 0:
            continue
        state[0] += 1
        for n in range(seen):
            slot = found[n]
            if weights[slot, 0] > 0:
                _add_to(tree, last[slot], -weights[slot, 0])
                _add_to(tree, state[0], weights[slot, 0])
            last[slot] = state[0]
        for n in range(new):
            slot = _slot_of(fresh[n], known, last)
            if last[slot] >= 0:
                continue
            known[slot], last[slot] = fresh[n], state[0]
            state[1] += 1
            weights[slot, 0] = 1 / share if _unit(fresh[n], 10 + 2 * seed) < share else 0.0
            weights[slot, 1] = 0.0
            again = _counted_of(fresh[n], sketch) - 1
            if tau == 0:
                weights[slot, 1] = 1.0
            elif again > 0 and _unit(fresh[n], 11 + 2 * seed) < again / tau:
                weights[slot, 1] = max(tau / again, 1.0)
            if weights[slot, 0] > 0:
                _add_to(tree, state[0], weights[slot, 0])
                total[0] += weights[slot, 0]
    return len(offsets) - 1
