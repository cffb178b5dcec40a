"""A cell that is reached through somebody else: ``python -m`` this in place of ``cell``.

``CELLWALL_TEST_ADVERTISE=cell-1=HOST:PORT,cell-2=HOST:PORT`` are the internal addresses that cells give to the control
plane; ``cell-1.public=HOST:PORT`` is the address that routers hear of.
"""

import os

from cell import __main__ as command_line

VARIABLE = "CELLWALL_TEST_ADVERTISE"

if __name__ == "__main__":
    addresses = dict(pair.split("=") for pair in os.environ.get(VARIABLE, "").split(",") if pair)
    name = os.environ["CELLWALL_CELL_NAME"]
    for end, setting in (("", "INTERNAL_ADVERTISE"), (".public", "ADVERTISE")):
        if address := addresses.get(f"{name}{end}"):
            os.environ[f"CELLWALL_CELL_{setting}"] = address
    raise SystemExit(command_line.main())
