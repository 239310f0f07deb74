"""
Every limit and every time of a node, with its unit, in one frozen value.

Ranges and relations are checked on construction, so that a node that runs has settings
that make sense together.  The defaults are those of the contract; an operator's options
change some of them, tests and simulations any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from .errors import BadConfiguration

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits and times of one node; see each field."""

    # What clients may send.
    value_bytes_max: int = 1 * MIB
    """UTF-8 bytes of a value; an option, at most 16 MiB."""
    payload_bytes_max: int = 64 * 1024
    """Bytes of a causal payload in a body."""
    payload_header_bytes_max: int = 8 * 1024
    """Bytes of a causal payload in a header or in the query."""
    payload_header_sent_bytes_max: int = 4 * 1024
    """A longer payload is answered in the body only."""
    requests_in_flight_max: int = 1024
    """Clients' requests between the end of their headers and their answer."""
    connections_max: int = 8192
    """Clients' connections at once; less where the process may not open so many."""
    body_bytes_in_flight_max: int = 256 * MIB
    """Bytes of bodies under way, counted for clients and for peers apart."""

    # A client's request.
    request_s: float = 0.9
    """The node works to this deadline; the promise to the client is one second."""
    answer_reserve_s: float = 0.1
    """Left of every deadline for the node's own answer."""
    connect_s: float = 0.15
    """To connect to a peer on behalf of a client."""
    write_try_s: tuple[float, ...] = (0.4, 0.3)
    """Each try of forwarding a write."""
    read_try_s: float = 0.4
    """Each try of forwarding a read."""
    read_hedge_s: float = 0.2
    """The next replica is asked besides when a read had no answer for so long."""
    causal_read_s: float = 0.5
    """A read waits so long for what its payload names."""
    busy_wait_s: float = 0.02
    """Until a peer that was busy with a delta in parts is asked again (R14)."""
    causal_read_spread_s: float = 0.1
    """After this time all live replicas are asked, not only those of the dots."""
    put_wait_s: float = 0.1
    """A PUT fetches what its payload names for so long, to tell 201 from 200."""
    push_ack_s: float = 0.05
    """A write waits so long for one other replica to have it, too."""
    lost_dots_s: float = 1.5
    """Dots that nobody could give are not waited for again for so long."""
    peer_skip_s: float = 1.0
    """A peer that failed is not asked on behalf of clients for so long."""
    start_hold_s: float = 0.3
    """A node that has just started looks for one that serves for so long."""

    # Gossip (R19).
    gossip_interval_s: float = 0.5
    gossip_jitter: float = 0.2
    """A round starts after the interval, more or less this fraction of it."""
    gossip_connect_s: float = 1.0
    """Whoever asked for a connection, it goes on being made for so long."""
    gossip_progress_s: float = 2.0
    """An exchange without progress for so long is given up."""
    gossip_total_s: float = 30.0
    """And after so long in all, unless a delta in parts makes progress."""
    dead_after_s: float = 3.0
    """Silence after which a member is believed dead."""
    probe_after_s: float = 1.5
    """Silence after which a member is dialled out of turn."""
    suspect_dial_s: float = 2.0
    """A member that is believed dead is dialled so often."""
    demotion_s: float = 30.0
    """A node that left the list of replicas goes on pulling for so long."""
    probe_s: float = 0.45
    """Each step of update_view takes so long at most, and all together ``request_s``:
    all members are probed at once, the change is committed (in two thirds of what is
    left), they are told at once."""

    # Deltas and pushes (R7, R8).
    delta_part_versions_max: int = 1000
    delta_part_bytes_max: int = 256 * 1024
    """Of keys and values in one part; a single greater version goes alone."""
    delta_part_dots_max: int = 20_000
    """Dots of the list of a full join in one part."""
    delta_sessions_max: int = 8
    """Deltas of more than one part that are being sent at once."""
    delta_session_idle_s: float = 10.0
    """A delta that nobody asks on for so long is forgotten."""
    push_batch_versions_max: int = 500
    push_batch_bytes_max: int = 1 * MIB
    push_queue_versions_max: int = 5000
    push_queue_bytes_max: int = 16 * MIB
    """Per peer; what does not fit is left to the next pull."""
    fold_versions: int = 500
    """Staged versions that are folded in one commit."""
    compact_interval_s: float = 2.0
    """How often a node looks whether there is something to compact (R9 to R12)."""
    compact_versions: int = 100
    """Versions that are compacted in one slice, at most: one turn, one commit."""
    compact_bytes: int = 1 * MIB
    """Of their keys and values; a single greater version goes alone."""
    compact_turn_s: float = 0.01
    """A slice that holds up the event loop for longer is followed by a smaller one."""
    compact_pause_s: float = 0.005
    """Rest between two slices."""
    retire_interval_s: float = 10.0
    """Actors that write no more are retired together, at most so often (R20)."""
    compact_held_s: float = 10.0
    """A member that has not reported for so long is said to hold up compaction."""
    compact_held_told_s: float = 60.0
    """And after so long in the log, too."""
    commit_bytes_max: int = 64 * MIB
    """Bytes of versions that wait for the disk; above it clients get 503."""
    full_disk_retry_s: float = 1.0
    """How often a node whose disk is full tries a commit."""

    spread: bool = False
    """A replica that is asked directly hands on, so that all get the same number."""

    def __post_init__(self) -> None:
        """
        Check ranges and relations.

        :raises BadConfiguration: one line that names the field.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | tuple):
                continue
            if not value > 0 or value == float("inf"):
                raise BadConfiguration(f"{field.name} is {value}, it must be above 0")
        relations = {
            "value_bytes_max must be at most 16 MiB": self.value_bytes_max <= 16 * MIB,
            "gossip_jitter must be below 1": self.gossip_jitter < 1,
            "answer_reserve_s must be below request_s": (
                self.answer_reserve_s < self.request_s
            ),
            "request_s must leave a tenth of the promised second": self.request_s
            <= 0.9,
            "probe_after_s must be below dead_after_s": (
                self.probe_after_s < self.dead_after_s
            ),
            "read_hedge_s must be below read_try_s": self.read_hedge_s
            < self.read_try_s,
        }
        for rule, holds in relations.items():
            if not holds:
                raise BadConfiguration(rule)

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a client: escaped as JSON or form, plus the rest."""
        return 3 * self.value_bytes_max + 128 * 1024
