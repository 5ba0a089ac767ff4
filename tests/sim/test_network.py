"""
Owns the tests of the fluid network: fair shares, and bytes that arrive when they should.

Knows nothing of swarms.
Invariants: the ones that the network's docstring names.
Source: tests/sim/network.py; the definition of max-min fairness.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.network import LEVEL_SHARE, Flow, Link, Network
from tests.sim.world import World


def start(network: Network, world: World, links: list[Link], size_bytes: float) -> Flow:
    """Start a flow that nobody listens to."""
    flow = Flow(links, [size_bytes], lambda _: None, now_s=world.now_s)
    network.start(flow)
    return flow


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_network_any_flows_share_the_links_max_min_fairly(pairs: list[tuple[int, int]]) -> None:
    """No link carries too much; every flow has a full link where none gets more than it does."""
    world = World(1)
    network = Network(world)
    ups = [Link(f"up {n}", 10.0 * (n + 1)) for n in range(4)]
    downs = [Link(f"down {n}", 25.0 / (n + 1)) for n in range(4)]
    flows = [start(network, world, [ups[a], downs[b]], 1e9) for a, b in pairs]
    slack = 1 + 4 * LEVEL_SHARE
    for link in [*ups, *downs]:
        assert sum(flow.rate_bps for flow in link.flows) <= link.rate_bps * slack
    for flow in flows:
        assert any(
            sum(f.rate_bps for f in link.flows) * slack >= link.rate_bps
            and all(f.rate_bps <= flow.rate_bps * slack for f in link.flows)
            for link in flow.links
        )


def test_network_flow_arrives_when_its_rate_says() -> None:
    """Two flows share a link; when the first is over, the second has all of it."""
    world = World(1)
    network = Network(world)
    up = Link("up", 10.0)
    times: list[float] = []
    for size_bytes in (10.0, 30.0):
        downlink = Link("down", 100.0)
        flow = Flow([up, downlink], [size_bytes], lambda _: times.append(world.now_s), now_s=0.0)
        network.start(flow)
    while world.step():
        pass
    assert times == pytest.approx([2.0, 4.0])
    assert up.carried_bytes == pytest.approx(40.0)


def test_network_held_flow_moves_nothing_and_leaves_its_share() -> None:
    """What stands still takes nothing; afterwards it goes on from where it was, sharing again."""
    world = World(1)
    network = Network(world)
    up = Link("up", 10.0)
    flows = [start(network, world, [up, Link("down", 10.0)], 20.0) for _ in range(2)]
    network.hold(flows[0], True)
    world.after(1.0, lambda: network.hold(flows[0], False))
    assert world.step()
    assert (flows[0].received_bytes(1.0), flows[1].received_bytes(1.0)) == (0, 10)
    while world.step():
        pass
    assert world.now_s == pytest.approx(5.0)


def test_network_rate_that_changes_holds_from_then_on() -> None:
    """A line that becomes slower delivers later."""
    world = World(1)
    network = Network(world)
    up, down = Link("up", 10.0), Link("down", 10.0)
    marks: list[float] = []
    network.start(Flow([up, down], [10.0, 20.0], lambda _: marks.append(world.now_s), now_s=0.0))
    world.after(1.5, lambda: network.set_rate(down, 5.0))
    while world.step():
        pass
    assert marks == pytest.approx([1.0, 2.5])
