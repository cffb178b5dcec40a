"""Cell zero in a local fleet: the old shop, its cron job and the ambassador, from command line to readiness."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import asyncpg

from infra.local.concurrency import together
from infra.local.processes import Command
from infra.local.servers import with_database
from infra.local.spec import CONTROL_PLANE, ZERO, ZeroSpec

if TYPE_CHECKING:  # both of them know this module
    from infra.local.plan import Plan
    from infra.local.runner import Runner

SHOP: Final = "shop"  # the database, and the role that the shop itself has
CUSTOMERS: Final = f"{ZERO}.customers"  # the name of the password of the seeded customers' users


@dataclass(frozen=True, slots=True)
class ZeroHandle:
    """Where cell zero listens, and what opens it. ``dsn`` is the superuser's of the shop's database; ``password`` is
    that of every seeded user of the shop.
    """

    address: str
    shop_url: str
    processes: tuple[str, ...]
    dsn: str = field(repr=False)
    password: str = field(repr=False)

    @classmethod
    def of(cls, plan: "Plan", zero: ZeroSpec) -> "ZeroHandle":
        """By the plan."""
        password = plan.state.password(CUSTOMERS)
        return cls(plan.at(zero.ambassador), plan.url(zero.shop), zero.processes, admin_dsn(plan, zero), password)


def port_names(zero: ZeroSpec) -> tuple[str, ...]:
    """Every port that it listens on."""
    return (zero.server, zero.shop, zero.ambassador, f"{zero.ambassador}.internal")


def health(plan: "Plan", zero: ZeroSpec, name: str) -> str | None:
    """The readiness URL of one of its services; None for the cron job, which listens nowhere."""
    return {
        zero.shop: f"{plan.url(zero.shop)}/anmelden.php",
        zero.ambassador: f"{plan.url(f'{zero.ambassador}.internal')}/health/ready",
    }.get(name)


def service(plan: "Plan", zero: ZeroSpec, name: str) -> Command:
    """One of its long-running Python processes."""
    if name == zero.ambassador:
        return ambassador(plan, zero, name, "ambassador")
    host, _, port = plan.at(zero.shop).rpartition(":")
    if name == zero.cron:
        return _shop(plan, zero, name, "cron", "--every", str(zero.cron_s))
    return _shop(plan, zero, name, "serve", "--host", host, "--port", port, "--longest", str(zero.longest_s))


def ambassador(plan: "Plan", zero: ZeroSpec, name: str, command: str) -> Command:
    """A command of the ambassador."""
    state = plan.state
    env = {
        "NAME": ZERO,
        "DSN": admin_dsn(plan, zero),
        "MONOLITH": plan.url(zero.shop),
        "LISTEN": plan.at(zero.ambassador),
        "INTERNAL_LISTEN": plan.at(f"{zero.ambassador}.internal"),
        "ENVELOPE_KEY": state.envelope_key(ZERO),
        "SECRETS_KEY": state.secrets_key(ZERO),
        "TRANSFER_TOKEN": state.transfer_token(ZERO),
        "AGENT_TOKEN": state.agent_token(ZERO),
        "CONTROL_PLANE_URL": plan.url(CONTROL_PLANE),
        "LONGEST_REQUEST_S": str(zero.longest_s),
    }
    return plan.python(name, "cell.zero", command, **{f"CELLWALL_ZERO_{key}": value for key, value in env.items()})


def admin_dsn(plan: "Plan", zero: ZeroSpec) -> str:
    """The superuser's DSN of the shop's database: the ambassador's, and for people who look for themselves."""
    return with_database(plan.superuser_dsn(zero.server), SHOP)


def _shop(plan: "Plan", zero: ZeroSpec, name: str, *arguments: str) -> Command:
    password = plan.state.password(f"{ZERO}.{SHOP}")
    server = admin_dsn(plan, zero).rpartition("@")[2]
    return plan.python(name, "cell.zero.monolith", *arguments, SHOP_DSN=f"postgresql://{SHOP}:{password}@{server}")


async def start(runner: "Runner", zero: ZeroSpec, say: Callable[[str], None]) -> None:
    """Start what of it does not run, the server first. A new shop gets its customers, once."""
    began = time.monotonic()
    await runner.ensure_server(zero.server)
    if not runner.is_alive(zero.ambassador):
        await _fill(runner, zero)
    started = await together(*map(runner.ensure_service, (zero.shop, zero.cron)), _ambassador(runner, zero))
    if any(started):
        plan = runner.plan
        say(f"{ZERO}: the ambassador answers on {plan.at(zero.ambassador)} ({time.monotonic() - began:.1f} s)")


async def _ambassador(runner: "Runner", zero: ZeroSpec) -> bool:
    if not runner.is_alive(zero.ambassador):
        name = f"{ZERO}-install"
        await runner.once(name, ambassador(runner.plan, zero, name, "install"))
    return await runner.ensure_service(zero.ambassador)


async def _fill(runner: "Runner", zero: ZeroSpec) -> None:
    """The shop's role, database, tables and customers; the last two are made in one transaction."""
    plan = runner.plan
    password = plan.state.password(f"{ZERO}.{SHOP}")
    connection = await asyncpg.connect(plan.superuser_dsn(zero.server))
    try:
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", SHOP):
            await connection.execute(f"CREATE ROLE {SHOP} LOGIN PASSWORD '{password}'")
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", SHOP):
            await connection.execute(f"CREATE DATABASE {SHOP} OWNER {SHOP}")
    finally:
        await connection.close()
    connection = await asyncpg.connect(admin_dsn(plan, zero))
    try:
        filled = await connection.fetchval("SELECT to_regclass('public.knd') IS NOT NULL")
    finally:
        await connection.close()
    if not filled:
        name = f"{ZERO}-seed"
        seed = _shop(plan, zero, name, "seed", "--customers", str(zero.customers), "--orders", str(zero.orders))
        given = {**(seed.env or {}), "SHOP_SEED_PASSWORD": plan.state.password(CUSTOMERS)}
        await runner.once(name, replace(seed, env=given))
