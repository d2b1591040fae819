"""The loops of `sampled_curve`: counting all chunks of a log in a sketch, and following the sampled ones."""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

MOST_COUNTED = 2**15 - 1
"""The counters of the sketch stop here; their highest bits are a Bloom filter in the second reading."""
_SEEN = np.uint16(2**15)
_MIX, _SPREAD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x9E3779B97F4A7C15)


@compiled
def _mixed(key: int, seed: int) -> np.uint64:
    """Return 64 evenly spread bits (the finaliser of splitmix64)."""
    z = np.uint64(key) + (np.uint64(seed) + np.uint64(1)) * _SPREAD
    z = (z ^ (z >> np.uint64(30))) * _MIX
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _first_seen(key: int, registers: npt.NDArray[np.uint8], distinct: Floats) -> None:
    """Count a key among the distinct ones if it is new, by HyperLogLog with the HIP estimator (Cohen, TKDE 2015).

    `distinct` is the estimate so far, and the share of new keys that change a register: each change stands for its inverse.
    Other than the classic estimate, this one is also right, and about as exact, for the keys between two moments.
    """
    bits = _mixed(key, 999)
    place = np.int64(bits & np.uint64(len(registers) - 1))
    rest = bits >> np.uint64(20)
    zeros = 1
    while zeros < 44 and not rest & np.uint64(1):
        zeros += 1
        rest >>= np.uint64(1)
    if zeros > registers[place]:
        distinct[0] += 1 / distinct[1]
        distinct[1] += (2.0**-zeros - 2.0 ** -float(registers[place])) / len(registers)
        registers[place] = zeros


@compiled
def count(keys: Keys, sketch: npt.NDArray[np.uint16], registers: npt.NDArray[np.uint8], distinct: Floats) -> None:
    """Count each key in the sketch, with conservative update, and among the distinct keys; `distinct[2]` adds up `_wish`."""
    mask = np.uint64(sketch.shape[1] - 1)
    places = np.empty(sketch.shape[0], np.int64)
    for key in keys:
        least = MOST_COUNTED
        for row in range(sketch.shape[0]):
            places[row] = np.int64(_mixed(key, 1000 + row) & mask)
            least = min(least, sketch[row, places[row]])
        if least < MOST_COUNTED:
            for row in range(sketch.shape[0]):
                if sketch[row, places[row]] == least:
                    sketch[row, places[row]] = least + 1
            if least > 0:
                distinct[2] += np.sqrt(float(least)) - np.sqrt(float(least - 1))
        _first_seen(key, registers, distinct)


@compiled
def _counted_of(key: int, sketch: npt.NDArray[np.uint16]) -> int:
    """Return how often the sketch counted a key; never too few, sometimes too many."""
    mask = np.uint64(sketch.shape[1] - 1)
    least = MOST_COUNTED
    for row in range(sketch.shape[0]):
        least = min(least, sketch[row, np.int64(_mixed(key, 1000 + row) & mask)] & MOST_COUNTED)
    return least


@compiled
def _wish(key: int, sketch: npt.NDArray[np.uint16]) -> float:
    """Return how much we wish to follow a chunk: the root of how often it comes again, between what hits and distances want."""
    return float(np.sqrt(max(_counted_of(key, sketch) - 1.0, 0.0)))


@compiled
def _is_chosen(key: int, sketch: npt.NDArray[np.uint16], tau: float, carry: Floats) -> bool:
    """Return whether to follow a chunk that is not followed: at its first use, `_wish` / `tau` of the chunks, evenly spaced.

    Evenly spaced in the order of first use, the sample has its share of each prefix, which a choice by hash has only on average.
    """
    wish = _wish(key, sketch)
    if wish == 0:
        return False
    mask = np.uint64(sketch.shape[1] - 1)
    seen = True
    for row in range(sketch.shape[0]):
        place = np.int64(_mixed(key, 1000 + row) & mask)
        seen = seen and sketch[row, place] >= _SEEN
        sketch[row, place] |= _SEEN
    if seen:
        return False
    if wish >= tau:
        return True
    carry[0] += wish / tau
    if carry[0] < 1:
        return False
    carry[0] -= 1
    return True


@compiled
def _slot_of(key: int, keys: Keys, last: Int64) -> int:
    """Return the slot of a key, or the empty slot in which it would be."""
    slot = np.int64(_mixed(key, 998) & np.uint64(len(keys) - 1))
    while last[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return int(slot)


@compiled
def _sums_of(tree: Floats, position: int, sums: Floats) -> None:
    """Subtract from `sums` what each group weighs at positions 1 to `position` (Fenwick 1994)."""
    while position > 0:
        sums -= tree[position]
        position &= position - 1


@compiled
def _add_to(tree: Floats, position: int, amounts: Floats) -> None:
    """Add the weight of each group to a position."""
    while position < len(tree):
        tree[position] += amounts
        position += position & -position


@compiled
def rebuild(tree: Floats, last: Int64, weights: Floats, groups: Int64) -> None:
    """Fill an empty tree with the weights of the followed chunks at their positions."""
    one = np.zeros(tree.shape[1], np.float64)
    for slot in range(len(last)):
        if last[slot] >= 0:
            one[groups[slot]] = weights[slot]
            _add_to(tree, last[slot], one)
            one[groups[slot]] = 0.0


@compiled
def move(  # noqa: PLR0913, PLR0917  two tables of four columns
    keys: Keys,
    last: Int64,
    weights: Floats,
    groups: Int64,
    new_keys: Keys,
    new_last: Int64,
    new_weights: Floats,
    new_groups: Int64,
) -> None:
    """Enter all followed chunks into an empty, larger table."""
    for slot in range(len(keys)):
        if last[slot] >= 0:
            to = _slot_of(keys[slot], new_keys, new_last)
            new_keys[to], new_last[to], new_weights[to], new_groups[to] = keys[slot], last[slot], weights[slot], groups[slot]


@compiled
def follow(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  one pass over the chunks: input, choice of the sample, state
    keys: Keys,
    offsets: Int64,
    start: int,
    sketch: npt.NDArray[np.uint16],
    tau: float,
    carry: Floats,
    bin_size: float,
    known: Keys,
    last: Int64,
    weights: Floats,
    groups: Int64,
    tree: Floats,
    born: Floats,
    seen_by: Floats,
    hits: Floats,
    state: Int64,
    registers: npt.NDArray[np.uint8],
    distinct: Floats,
) -> int:
    """Follow the sampled chunks of lookups from `start` on. Return the next lookup: earlier than the last if room ran out.

    A chunk of group 0 is followed for certain; the others are put into the groups in turn. By position in time: `tree` has
    the weights of the chunks last touched there, `born` the weights followed by then, and `seen_by` the distinct chunks by then.
    `hits` gets the hits by distance, of all groups together (row 0) and of all but one. `state` is the latest position and the
    number of followed chunks. With `tau` 0 all chunks are followed.
    """
    several = tree.shape[1] - 1
    between, moved, earlier = np.zeros(several + 1), np.zeros(several + 1), np.zeros(several + 1)
    bases = np.zeros(several + 1)
    longest = 0
    for r in range(start, len(offsets) - 1):
        longest = max(longest, offsets[r + 1] - offsets[r])
    found, fresh = np.empty(longest, np.int64), np.empty(longest, np.uint64)
    for r in range(start, len(offsets) - 1):
        if state[0] + 1 >= len(tree) or 2 * (state[1] + offsets[r + 1] - offsets[r]) > len(known):
            return r
        seen, new = 0, 0
        run = np.int64(-1)
        moved[:] = 0
        earlier[:] = 0
        for i in range(offsets[r], offsets[r + 1]):
            key = keys[i]
            slot = _slot_of(key, known, last)
            if last[slot] < 0:
                if tau == 0 or _is_chosen(key, sketch, tau, carry):
                    fresh[new] = key
                    new += 1
                continue
            if last[slot] != run:
                if run >= 0:
                    _add_to(tree, int(run), -moved)
                    earlier += moved
                    moved[:] = 0
                run = last[slot]
                # Chunks touched since: the new ones, counted; the shallower ones of this lookup, counted by their depth; and
                # others that were known before and were touched again, estimated from the sample.
                between[:] = born[run] - earlier
                _sums_of(tree, run, between)
                counted = distinct[0] - seen_by[run] + between[0]
                rest = between[1:].sum()
                bases[0] = counted + rest
                for group in range(1, several + 1):
                    bases[group] = counted + (rest - between[group]) * several / (several - 1)
            depth, own = i - offsets[r], groups[slot]
            for group in range(several + 1):
                if group == 0 or group != own:
                    place = int(max(bases[group], 0.0) + depth) / bin_size
                    hits[group, min(int(place), hits.shape[1] - 1)] += weights[slot]
            moved[own] += weights[slot]
            found[seen] = slot
            seen += 1
        if run >= 0:
            _add_to(tree, int(run), -moved)
            earlier += moved
        for i in range(offsets[r], offsets[r + 1]):
            _first_seen(keys[i], registers, distinct)
        if seen == 0 and new == 0:
            continue
        state[0] += 1
        now = state[0]
        for n in range(seen):
            last[found[n]] = now
        born[now] = born[now - 1]
        for n in range(new):
            slot = _slot_of(fresh[n], known, last)
            if last[slot] >= 0:
                continue
            known[slot], last[slot] = fresh[n], now
            state[1] += 1
            weights[slot] = max(tau / max(_wish(fresh[n], sketch), 1.0), 1.0)
            groups[slot] = 0 if weights[slot] == 1 else 1 + state[1] % several
            earlier[groups[slot]] += weights[slot]
            born[now, groups[slot]] += weights[slot]
        seen_by[now] = born[now, 0] if tau == 0 else distinct[0]
        if tau == 0:
            distinct[0] = seen_by[now]
        _add_to(tree, now, earlier)
    return len(offsets) - 1
