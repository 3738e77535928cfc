from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from made_index import WIDTH, assert_exact, named, unit

from fewshot.search.engines import Vectors
from fewshot.search.index import Index

pytestmark = pytest.mark.slow


class History(RuleBasedStateMachine):
    """Any sequence of changes has the result of the same changes to a dict."""

    kind = "exact"

    @initialize()
    def start(self) -> None:
        self.index = Index(WIDTH, kind=self.kind)
        self.model: dict[str, tuple[Vectors, int]] = {}
        self.made = 0

    def some(self, data: st.DataObject) -> list[str]:
        return data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True, max_size=30))

    def fresh(self, n: int) -> tuple[list[str], Vectors, list[dict[str, int]]]:
        """Keys, vectors of which some are equal, metadata."""
        keys, vectors = named(n, first=self.made), unit(n, seed=self.made // 3)
        self.made += n + 1
        return keys, vectors, [{"made": self.made}] * n

    def hold(self, keys: list[str], vectors: Vectors, metadata: list[dict[str, int]]) -> None:
        entries = zip(vectors, (entry["made"] for entry in metadata), strict=True)
        self.model.update(zip(keys, entries, strict=True))

    @rule(n=st.integers(0, 60))
    def add(self, n: int) -> None:
        fresh = self.fresh(n)
        self.index.add(*fresh)
        self.hold(*fresh)

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def remove(self, data: st.DataObject) -> None:
        keys = self.some(data)
        self.index.remove(keys)
        for key in keys:
            del self.model[key]

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def replace(self, data: st.DataObject) -> None:
        keys = self.some(data)
        _, vectors, metadata = self.fresh(len(keys))
        self.index.replace(keys, vectors, metadata)
        self.hold(keys, vectors, metadata)

    @rule(n=st.integers(0, 20))
    def merge(self, n: int) -> None:
        fresh, other = self.fresh(n), Index(WIDTH)
        other.add(*fresh)
        self.index.merge(other)
        self.hold(*fresh)

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(folder)
            self.index = Index.load(folder)

    @rule(n=st.integers(1, 20), k=st.integers(1, 40), seed=st.integers(0, 99))
    def search(self, n: int, k: int, seed: int) -> None:
        queries = unit(n, seed)
        found = self.index.search(queries, k)
        assert found.keys.shape == (n, min(k, len(self.model)))
        for query, keys, similarity in zip(queries, found.keys, found.similarity, strict=True):
            assert len(set(keys)) == len(keys)
            assert set(keys) <= set(self.model)
            if len(keys):
                expected = np.stack([self.model[key][0] for key in keys]) @ query
                assert np.allclose(expected, similarity, atol=1e-6)
        if self.kind == "exact" and self.model:
            assert_exact(self.index, queries, k)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.index.keys == tuple(self.model)
        expected = np.stack([vector for vector, _ in self.model.values()]) if self.model else unit(0)
        assert np.array_equal(self.index.vectors(self.index.keys), expected)
        assert [self.index.metadata(key)["made"] for key in self.index.keys] == [
            made for _, made in self.model.values()
        ]
        assert self.index.recall >= 0.95


class ListsHistory(History):
    kind = "ivf"


class QuantisedHistory(History):
    kind = "pq"


class GraphHistory(History):
    kind = "hnsw"


SOME = settings(max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck))
TestExact, TestLists, TestGraph = History.TestCase, ListsHistory.TestCase, GraphHistory.TestCase
TestQuantised = QuantisedHistory.TestCase
TestExact.settings = TestLists.settings = TestGraph.settings = TestQuantised.settings = SOME
