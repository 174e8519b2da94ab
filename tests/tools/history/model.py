"""A small, correct store, as a model: causal delivery, concurrent versions, one winner. It records histories."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.tools.history.histories import Pairs
from tools.history import (
    Operation,
    Value,
)


@dataclass
class Update:
    name: str
    stamp: tuple[int, str]
    past: frozenset[str]
    writes: Pairs
    replaces: tuple[tuple[str, str], ...]


@dataclass
class ModelReplica:
    name: str
    skew: int
    applied: dict[str, Update] = field(default_factory=dict)
    versions: dict[str, dict[str, Update]] = field(default_factory=dict)
    deleted: frozenset[str] = frozenset()
    highest: int = 0
    count: int = 0

    def apply(self, update: Update) -> None:
        self.applied[update.name] = update
        self.highest = max(self.highest, update.stamp[0])
        for key, replaced in update.replaces:
            self.versions.get(key, {}).pop(replaced, None)
        for key, value in update.writes.items():
            if value is None:
                self.deleted |= update.past | {update.name}
            else:
                self.versions.setdefault(key, {})[update.name] = update

    def siblings(self, key: str) -> list[Update]:
        return sorted(self.versions.get(key, {}).values(), key=lambda u: u.stamp, reverse=True)

    def write(self, writes: Pairs, past: frozenset[str], now: int) -> Update:
        replaced = [(key, version) for key in writes for version in self.siblings(key)]
        for _, version in replaced:
            past |= version.past | {version.name}
        self.count += 1
        stamp = (max(self.highest + 1, now + self.skew), self.name)
        pairs = tuple((key, version.name) for key, version in replaced)
        update = Update(f"{self.name}:{self.count}", stamp, past | self.deleted, writes, pairs)
        self.apply(update)
        return update


@dataclass
class Model:
    """Three replicas; clients change replicas and hand metadata to each other; writes may time out, applied or not."""

    rng: random.Random
    keys: int = 3
    clients: int = 3
    history: list[Operation] = field(default_factory=list)
    updates: dict[str, Update] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replicas = [ModelReplica(name, self.rng.randrange(20)) for name in "rst"]
        self.past = {f"c{i}": frozenset[str]() for i in range(self.clients)}
        self.last: dict[str, str] = {}
        self.serial = 0

    def deliver(self, replica: ModelReplica, wanted: frozenset[str]) -> None:
        for name in sorted(wanted - replica.applied.keys(), key=lambda n: self.updates[n].stamp):
            self.deliver(replica, self.updates[name].past)
            if name not in replica.applied:
                replica.apply(self.updates[name])

    def step(self) -> None:  # noqa: C901 (one request of a client)
        rng = self.rng
        replica = rng.choice(self.replicas)
        if rng.random() < 0.3 and self.updates:
            self.deliver(replica, frozenset([rng.choice(list(self.updates))]))
            return
        session = rng.choice(list(self.past))
        after: tuple[str, ...] = ()
        if rng.random() < 0.1 and self.last:
            giver = rng.choice(list(self.last))
            after = (self.last[giver],)
            self.past[session] |= self.past[giver]
        past = self.past[session]
        self.deliver(replica, past)
        keys = [f"k{i}" for i in rng.sample(range(self.keys), rng.choice([1, 1, 1, 2]))]
        reads: list[tuple[str, Value | None]] = []
        siblings: list[tuple[str, Value]] = []
        writes: Pairs = {}
        kind = rng.choice(["put", "put", "get", "get", "get", "delete", "txn"])
        if kind in ("get", "txn"):
            for key in keys:
                versions = replica.siblings(key)
                reads.append((key, versions[0].writes[key] if versions else None))
                more = versions[1:] if kind == "get" and rng.random() < 0.3 else []
                siblings += [(key, value) for u in more if (value := u.writes[key]) is not None]
                for version in versions[:1] + more:
                    past |= version.past | {version.name}
            past |= replica.deleted
        if kind == "delete":
            writes = {key: None for key in keys if replica.siblings(key)}
            if not writes:
                return
        elif kind != "get":
            for key in keys:
                self.serial += 1
                writes[key] = str(self.serial)
        update: Update | None = None
        unknown = bool(writes) and rng.random() < 0.15
        if writes and not (unknown and rng.random() < 0.5):
            # The metadata of a write's response includes the deletes, like that of any response.
            update = replica.write(writes, past, now=len(self.history))
            self.updates[update.name] = update
            past |= update.past | {update.name}
        if not unknown:
            self.past[session] = past
        self.history.append(
            Operation(
                session,
                "txn" if kind == "txn" else "get" if kind == "get" else "put",
                reads=tuple(reads) if not unknown else (),
                siblings=tuple(siblings) if not unknown else (),
                writes=tuple(writes.items()),
                status="unknown" if unknown else "ok",
                id=f"o{len(self.history)}",
                after=after,
                update=update.name if update else None,
                replaces=update.replaces if update else (),
                replica=replica.name,
            )
        )
        if not unknown:
            self.last[session] = f"o{len(self.history) - 1}"


def run_model(seed: int, steps: int, keys: int = 3, clients: int = 3) -> Model:
    model = Model(random.Random(seed), keys=keys, clients=clients)
    for _ in range(steps):
        model.step()
    return model
