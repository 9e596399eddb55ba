"""Where virtual epochs end, on the axis of examples. Exact integers, nothing is lost.

    edge(k) = k * total // n        edge(0) = 0, edge(n) = total, gaps differ by at most 1

After the stop point has moved, edges go on at the old gap and the last one is the new total;
edges that have been reached never move, so that old numbers keep their meaning.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

from ckptfmt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of edges at one gap: edge(after + j) = start + j * num // den."""

    after: int  # number of the edge it starts from
    start: int  # examples at that edge
    num: int  # gap = num / den >= 1 examples
    den: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The edges of a run: numbers k = 0..n, each at so many examples."""

    pieces: tuple[Piece, ...]  # ascending; at least one, the first starts at 0
    total: int  # examples at the last edge, >= 1

    @classmethod
    def of(cls, total: int, n: int) -> Grid:
        """Return `n` virtual epochs over `total` examples, both >= 1.

        Raises:
            UsageError: there are more virtual epochs than examples.
        """
        _check_gap(total, n, largest=total)
        return cls((Piece(0, 0, total, n),), total)

    @property
    def _active(self) -> tuple[Piece, ...]:
        """Those before the stop point: it may have been lowered."""
        return tuple(piece for piece in self.pieces if piece.start < self.total)

    @property
    def n(self) -> int:
        """Number of the last edge."""
        # Stretches beyond a lowered stop point keep the numbers of what was reached.
        beyond = [piece for piece in self.pieces[1:] if piece.start >= self.total]
        piece = self.pieces[-1 - len(beyond)]
        n = piece.after - (self.total - piece.start) * piece.den // -piece.num
        return min(n, beyond[0].after + 1) if beyond else n

    @property
    def gap(self) -> Fraction:
        """Examples from one edge to the next."""
        return Fraction(self.pieces[-1].num, self.pieces[-1].den)

    def edge(self, k: int) -> int:
        """Return the examples at edge `k`, 0 <= k <= n."""
        return min(self._nominal(k), self.total)

    def _nominal(self, k: int) -> int:
        """Return where edge `k` would be if the run went on for ever."""
        pieces = self.pieces
        last = max((i for i, p in enumerate(pieces) if p.after < k), default=0)
        piece, following = pieces[last], pieces[last + 1 :]
        examples = piece.start + (k - piece.after) * piece.num // piece.den
        return min(examples, following[0].start) if following else examples

    def reached(self, seen: int) -> int:
        """Return the largest k with edge(k) <= seen."""
        if seen >= self.total:
            return self.n
        pieces = self._active
        last = max(i for i, p in enumerate(pieces) if p.start <= seen)
        piece, following = pieces[last], pieces[last + 1 :]
        # j * num // den <= d  <=>  j * num < (d + 1) * den
        k = piece.after + ((seen - piece.start + 1) * piece.den - 1) // piece.num
        return min(k, following[0].after if following else self.n)

    def kept(self, k: int) -> Grid:
        """Return the grid in which edge `k`, which was just reached, will never move."""
        if k < self.n or (self._nominal(k) == self.total and self._active == self.pieces):
            return self
        last = self.pieces[-1]
        # A stretch that begins beyond a lowered stop point begins there from now on.
        before = (
            dataclasses.replace(piece, start=min(piece.start, self.total))
            for piece in self.pieces
            if piece.after < k
        )
        return Grid((*before, Piece(k, self.total, last.num, last.den)), self.total)

    def moved(self, total: int) -> Grid:
        """Return the grid with another total; edges go on at the old gap."""
        return dataclasses.replace(self, total=total)

    def divided(self, *, after: int, start: int, total: int, n: int) -> Grid:
        """Return the grid in which edges after the given one divide the rest evenly.

        Raises:
            UsageError: fewer examples are left than edges, or no edge is left.
        """
        if n <= after or total <= start:
            raise UsageError(
                "nothing is left to divide: expected more virtual epochs than are complete,"
                " and a total beyond what was seen",
                virtual_epochs=n,
                complete=after,
                total=total,
                seen=start,
            )
        num, den = total - start, n - after
        _check_gap(num, den, largest=after + num, asked=n)
        pieces = tuple(piece for piece in self.pieces if piece.start < start)
        return Grid((*pieces, Piece(after, start, num, den)), total)

    def position(self, seen: int) -> Fraction:
        """Return `seen` in virtual epochs: the edges reached, and the way to the next one."""
        k = self.reached(seen)
        if k >= self.n:
            return Fraction(k)
        low, high = self.edge(k), self.edge(k + 1)
        return k + Fraction(max(seen - low, 0), high - low)


def _check_gap(examples: int, n: int, *, largest: int, asked: int | None = None) -> None:
    if n > examples:
        raise UsageError(
            "more virtual epochs than examples: some would have none",
            virtual_epochs=asked or n,
            largest=largest,
        )
