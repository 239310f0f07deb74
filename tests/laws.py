"""
Laws as mixins: a test case names its values and operations, the mixin checks the laws.

Each law is drawn inside of its test method, so that several test cases can share it.
Plain asserts, because a mixin is no test case; Hypothesis shows the values that failed.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from twisted_kvs.core.errors import KVSError

T = TypeVar("T")
Encoded = TypeVar("Encoded")


class _Drawn(Generic[T]):
    """Values of one kind."""

    values: SearchStrategy[T]

    def several(self, count: int) -> SearchStrategy[list[T]]:
        """Draw values that may meet; overridden where they must have one origin."""
        return st.lists(self.values, min_size=count, max_size=count)


class LatticeLaws(_Drawn[T]):
    """A join is the least upper bound: values converge in whatever order they meet."""

    def join(self, left: T, right: T) -> T:
        """Join two values."""
        raise NotImplementedError

    def canonical(self, value: T) -> object:
        """Turn a value into something whose ``==`` means the same value."""
        return value

    def _same(self, left: T, right: T) -> bool:
        return self.canonical(left) == self.canonical(right)

    def test_join_is_commutative(self) -> None:
        """It does not matter who of two tells the other."""

        @given(self.several(2))
        def law(values: list[T]) -> None:
            a, b = values
            assert self._same(self.join(a, b), self.join(b, a))

        law()

    def test_join_is_associative(self) -> None:
        """It does not matter in which order three meet."""

        @given(self.several(3))
        def law(values: list[T]) -> None:
            a, b, c = values
            left = self.join(self.join(a, b), c)
            assert self._same(left, self.join(a, self.join(b, c)))

        law()

    def test_join_is_idempotent(self) -> None:
        """Hearing the same again changes nothing."""

        @given(self.several(2))
        def law(values: list[T]) -> None:
            a, b = values
            assert self._same(self.join(a, a), a)
            both = self.join(a, b)
            assert self._same(self.join(both, b), both)
            assert self._same(self.join(both, a), both)

        law()


class PartialOrderLaws(_Drawn[T]):
    """``leq`` is a partial order."""

    def leq(self, left: T, right: T) -> bool:
        """Tell whether left <= right."""
        raise NotImplementedError

    def test_order_is_reflexive(self) -> None:
        """Everything is at least itself."""

        @given(self.several(1))
        def law(values: list[T]) -> None:
            (a,) = values
            assert self.leq(a, a)

        law()

    def test_order_is_antisymmetric(self) -> None:
        """Two different values are never each below the other."""

        @given(self.several(2))
        def law(values: list[T]) -> None:
            a, b = values
            if a != b:
                assert not (self.leq(a, b) and self.leq(b, a))

        law()

    def test_order_is_transitive(self) -> None:
        """What is below something below a third is below the third."""

        @given(self.several(3))
        def law(values: list[T]) -> None:
            a, b, c = values
            if self.leq(a, b) and self.leq(b, c):
                assert self.leq(a, c)

        law()


class LeastUpperBoundLaws(LatticeLaws[T], PartialOrderLaws[T]):
    """The order and the join belong together."""

    def test_join_only_grows(self) -> None:
        """A join is at least both of its parts: nothing that was known is lost."""

        @given(self.several(2))
        def law(values: list[T]) -> None:
            a, b = values
            both = self.join(a, b)
            assert self.leq(a, both)
            assert self.leq(b, both)

        law()

    def test_join_is_the_least_upper_bound(self) -> None:
        """A join adds nothing that neither of its parts has."""

        @given(self.several(3))
        def law(values: list[T]) -> None:
            a, b, c = values
            both = self.join(a, b)
            if self.leq(a, c) and self.leq(b, c):
                assert self.leq(both, c)
            # c is seldom above both; this always is.
            assert self.leq(both, self.join(self.join(a, c), b))

        law()

    def test_what_grew_twice_is_above_what_it_was(self) -> None:
        """Knowledge that grows step by step stays above all that it was."""

        @given(self.several(3))
        def law(values: list[T]) -> None:
            a, b, c = values
            assert self.leq(a, self.join(self.join(a, b), c))

        law()


class StrictOrderLaws(_Drawn[T]):
    """``before`` is a strict partial order."""

    def before(self, left: T, right: T) -> bool:
        """Tell whether left < right."""
        raise NotImplementedError

    def test_nothing_is_before_itself(self) -> None:
        """Nothing comes before itself."""

        @given(self.several(1))
        def law(values: list[T]) -> None:
            (a,) = values
            assert not self.before(a, a)

        law()

    def test_before_is_transitive(self) -> None:
        """What comes before something before a third comes before the third."""

        @given(self.several(3))
        def law(values: list[T]) -> None:
            a, b, c = values
            if self.before(a, b):
                assert not self.before(b, a)
                if self.before(b, c):
                    assert self.before(a, c)

        law()


class CodecLaws(Generic[T, Encoded]):
    """What is decoded is what was encoded; all else is refused in one way."""

    values: SearchStrategy[T]
    garbage: SearchStrategy[Encoded]

    def encode(self, value: T) -> Encoded:
        """Write a value."""
        raise NotImplementedError

    def decode(self, encoded: Encoded) -> T:
        """Read a value."""
        raise NotImplementedError

    def test_decoding_gives_back_what_was_encoded(self) -> None:
        """Nothing is lost or changed on the way."""

        @given(self.values)
        def law(value: T) -> None:
            assert self.decode(self.encode(value)) == value

        law()

    def test_garbage_is_refused_as_somebody_elses_fault(self) -> None:
        """Garbage is an error that names itself, never a crash."""

        @given(self.garbage)
        def law(encoded: Encoded) -> None:
            try:
                value = self.decode(encoded)
            except KVSError:
                return
            assert self.encode(value) == encoded

        law()
