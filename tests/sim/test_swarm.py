"""
Owns the simulation: whole swarms of planners, many seeds.

Knows nothing of the engine's tasks.
Invariants: everybody who lives finishes; the hub is asked for each chunk once when all is well.
Source: design.md §6; docs/explanation/scheduling.md.
"""

from __future__ import annotations

import pytest

from p2pcache.core.planner import PlannerLimits
from tests.sim.swarmsim import Member, World

TIME_S_MAX = 300.0


def make_world(seed: int) -> World:
    """Make a swarm of three to sixteen members."""
    world = World(seed, chunk_count=16 + seed % 5 * 8)
    for number in range(3 + seed % 14):
        Member(world, number)
    return world


def assert_all_finish(world: World) -> None:
    """Run to the end; every member that lives has every chunk."""
    world.run(TIME_S_MAX)
    assert all(member.is_complete for member in world.members if member.is_alive)


@pytest.mark.parametrize("seed", range(20))
def test_swarm_that_starts_together_asks_the_hub_once_for_each_chunk(seed: int) -> None:
    """When nothing fails, the hub gives exactly one copy, and all finish."""
    world = make_world(seed)
    for member in world.members:
        member.start()
    assert_all_finish(world)
    assert world.upstream_chunks == dict.fromkeys(range(world.chunk_count), 1)


@pytest.mark.parametrize("seed", range(12))
def test_swarm_whose_members_come_one_by_one_asks_little_more(seed: int) -> None:
    """Newcomers join what is under way; what is asked twice is bounded by a message's time."""
    world = make_world(seed)
    for member in world.members:
        world.after(world.random.uniform(0.0, 1.0), member.start)
    assert_all_finish(world)
    assert world.upstream_chunks.total() <= world.chunk_count * 1.5
    assert max(world.upstream_chunks.values()) <= 3


@pytest.mark.parametrize("seed", range(12))
def test_lease_of_a_member_that_dies_is_taken_over(seed: int) -> None:
    """Members that vanish with chunks in flight cost time and those chunks, nobody's download."""
    world = make_world(seed)
    for member in world.members:
        member.start()
    for member in world.members[: max(1, len(world.members) // 3)]:
        world.after(world.random.uniform(0.05, 0.4), member.die)
    assert_all_finish(world)
    asked = world.upstream_chunks
    alive = [member for member in world.members if member.is_alive]
    by_living = sum((m.asked_upstream for m in alive), type(asked)())
    assert max(by_living.values()) <= 2
    assert by_living.total() <= world.chunk_count * 1.25
    assert world.now_s <= 10 * PlannerLimits().lease_s


@pytest.mark.parametrize("seed", range(6))
def test_member_that_is_slow_at_the_hub_holds_up_nobody_for_long(seed: int) -> None:
    """One member with a line ten times slower does not make the swarm ten times slower."""
    world = World(seed, chunk_count=32)
    members = [Member(world, 0, upstream_factor=10.0)]
    members += [Member(world, number) for number in range(1, 4)]
    for member in members:
        member.start()
    assert_all_finish(world)
    assert world.upstream_chunks.total() <= world.chunk_count * 1.5


@pytest.mark.parametrize("seed", range(3))
def test_history_of_a_seed_is_always_the_same(seed: int) -> None:
    """A seed that fails can be run again."""
    histories = []
    for _ in range(2):
        world = make_world(seed)
        for member in world.members:
            world.after(world.random.uniform(0.0, 0.5), member.start)
        assert_all_finish(world)
        histories.append((world.now_s, dict(world.upstream_chunks)))
    assert histories[0] == histories[1]
