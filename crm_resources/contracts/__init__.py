"""The contracts: one pydantic model per entity, and everything that is derived from it.

`entities` declares, `model` reads the declarations into plain column descriptions, and `derive_*` turn those into the
forms each system wants. A field is named in `entities` and nowhere else.
"""

from crm_resources.contracts.entities import ENTITIES, Envelope, Event, Order, OrderLine, Product, Profile
from crm_resources.contracts.model import ChildTable, Column, ColumnType, Contract, contract_for, contracts
from crm_resources.contracts.reasons import Reason

__all__ = [
    "ENTITIES",
    "ChildTable",
    "Column",
    "ColumnType",
    "Contract",
    "Envelope",
    "Event",
    "Order",
    "OrderLine",
    "Product",
    "Profile",
    "Reason",
    "contract_for",
    "contracts",
]
