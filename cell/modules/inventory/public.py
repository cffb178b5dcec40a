"""What the rest of a cell may use of the inventory: units for an order, in a session of the caller."""

from cell.modules.inventory.service import release, reserve, sell

__all__ = ["release", "reserve", "sell"]
