"""How the ranks of a group on one host get at each other's memory.

Each rank publishes a card through the store that torch gives it, which is as trusted as the run itself. A
card names a socket without a file (nothing is left behind, whatever kills us) and a secret. Who connects must
know the secret and be of the same user, as the kernel says; it is handed the descriptor of the memory.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from threading import Thread
from typing import Any, Protocol

SECRET_BYTES = 32
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)


class Store(Protocol):
    """What is needed of torch.distributed.Store."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


@dataclass(frozen=True)
class Offer:
    """How the others get at a rank's memory.

    memory: names the process's memory; share: where the rank's part of the group lies in it
    """

    memory: str = ""
    share: int = 0
    socket: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Card:
    """What a rank tells the others of itself.

    transport: that it was told to take; obstacle: why it cannot share memory, or ""
    """

    host: str
    transport: str
    obstacle: str
    offer: Offer


def publish_card(store: Store, rank: int, card: Card) -> None:
    """Tell the others of this rank."""
    store.set(_key(rank), json.dumps(asdict(card)))


def read_cards(store: Store, ranks: int) -> list[Card]:
    """The cards of all ranks, as soon as they are there; raises what the store raises at its timeout."""
    return [_card(json.loads(store.get(_key(rank)))) for rank in range(ranks)]


def _key(rank: int) -> str:
    """Of a card of this start: torchrun keeps its store, dead cards included, when it starts ranks again."""
    return f"wolong/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _card(said: dict[str, Any]) -> Card:
    return Card(said["host"], said["transport"], said["obstacle"], Offer(**said["offer"]))


def find_obstacle(cards: Sequence[Card]) -> str | None:
    """Why these ranks cannot share memory, if so; all ranks find the same."""
    for rank, card in enumerate(cards):
        if card.obstacle:
            return f"rank {rank} cannot share memory: {card.obstacle}"
    hosts = len({card.host for card in cards})
    return f"the ranks are on {hosts} hosts" if hosts > 1 else None


class DescriptorServer:
    """Hands a descriptor to each of a number of peers, in a thread of its own."""

    def __init__(self, descriptor: int, peers: int, timeout: timedelta) -> None:
        self.secret = secrets.token_hex(SECRET_BYTES)
        self.name = f"wolong-{os.getpid()}-{secrets.token_hex(8)}"
        self._descriptor, self._peers = descriptor, peers
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind("\0" + self.name)
        self._socket.listen(max(peers, 1))
        self._socket.settimeout(timeout.total_seconds())
        Thread(target=self._serve, name="wolong-rendezvous", daemon=True).start()

    def _serve(self) -> None:
        served = 0
        with self._socket:
            while served < self._peers:
                try:
                    peer, _ = self._socket.accept()
                except OSError:  # the time is over: whoever is missing says so itself
                    return
                with peer:
                    served += self._hand_over(peer)

    def _hand_over(self, peer: socket.socket) -> bool:
        peer.settimeout(self._socket.gettimeout())
        try:
            said = peer.recv(2 * SECRET_BYTES, socket.MSG_WAITALL)
            if _credentials(peer)[1] != os.geteuid() or not hmac.compare_digest(said, self.secret.encode()):
                return False
            socket.send_fds(peer, [b"!"], [self._descriptor])
        except OSError:
            return False
        return True


def fetch_descriptor(offer: Offer, timeout: timedelta) -> tuple[int, int]:
    """The descriptor of a peer's memory, and a pidfd of its process.

    Raises OSError when the peer is gone, and PermissionError when it is not ours.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(timeout.total_seconds())
        peer.connect("\0" + offer.socket)
        pid, uid, _ = _credentials(peer)
        if uid != os.geteuid():
            raise PermissionError(f"the socket of a rank belongs to another user ({uid})")
        process = os.pidfd_open(pid)
        peer.sendall(offer.secret.encode())
        said, descriptors, _, _ = socket.recv_fds(peer, 1, 1)
        if not said or not descriptors:
            raise ConnectionError("a rank did not hand over its memory")
        return descriptors[0], process


def _credentials(peer: socket.socket) -> Sequence[int]:
    return _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
