"""What a request costs: the engine's time and KV memory that it took, and a price for both.

The engine charges the time of each step to the sequences in it, in proportion to the tokens that they computed there,
and the KV pages that a sequence holds for as long. So the device-seconds of all requests add up to the time in which
the engine worked; idle time is nobody's. A request whose client left is charged for what it took until its last output.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_HOUR_S = 3600.0
_GIB = float(1 << 30)


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    """Of one model. ``currency`` is any short word; it is reported with the amounts."""

    currency: str
    device_hour: float = 0.0
    kv_gib_hour: float = 0.0

    def amount(self, device_s: float, kv_byte_s: float) -> float:
        return (device_s * self.device_hour + kv_byte_s / _GIB * self.kv_gib_hour) / _HOUR_S


@dataclasses.dataclass(slots=True)
class Cost:
    """What was taken, so far."""

    device_s: float = 0.0
    kv_byte_s: float = 0.0

    def fields(self, price: Price | None) -> dict[str, Any]:
        """As ``usage.cost`` shows it."""
        found: dict[str, Any] = {"device_seconds": self.device_s, "kv_byte_seconds": self.kv_byte_s}
        if price is not None:
            found |= {"amount": price.amount(self.device_s, self.kv_byte_s), "currency": price.currency}
        return found
