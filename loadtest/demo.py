"""``python -m loadtest.demo``: a whole fleet on this machine, a live move and a new cell under traffic, and the books.

Exit status 0: nothing was lost, doubled or misplaced, and no request failed but those in flight in the worker that the
demo killed. 1: something was. 2: it could not be set up as asked. 130: interrupted. Whatever happens, nothing is left
running, unless ``--keep`` asks for it and the run came to its end; of a run that failed the logs stay.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import click
import httpx

from contracts.ids import tenant_number
from contracts.keys import Purpose, derive, parse_root
from contracts.routes import split_address
from infra.local import commandline
from infra.local.concurrency import finished
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec, ZeroSpec, default_folder
from loadtest import books, ledger
from loadtest.alone import only_one
from loadtest.driver import Driver
from loadtest.effects import Effects
from loadtest.evidence import evidence
from loadtest.history.clients import recorded
from loadtest.history.judge import judge
from loadtest.history.operation import History
from loadtest.incidents import Happened, Incidents, Timetable, Victim
from loadtest.lab import tables
from loadtest.lab.seed import SEEDED
from loadtest.leaving import Leaving, Left
from loadtest.negative import Bench, Verdict, negative_control
from loadtest.newcell import NEWCOMERS, Joined, add_cell
from loadtest.noise import Noise, make_noise
from loadtest.oldshop import OldShop
from loadtest.operator import ControlPlane, LabError, Product
from loadtest.outcome import Outcome
from loadtest.outside import Outside
from loadtest.record import Record
from loadtest.schedule import Intent, Traffic, beside, schedule
from loadtest.show import Teller, console
from loadtest.tenants import Cast, sign_up
from loadtest.wire import ExchangeError, Pool
from loadtest.workload import Account

DETAIL_EVERY_S = 0.5
CONNECTIONS = 8  # to each router: its workers share them
WATCHED = 2  # tenants, the one that moves among them, of which a register is read and written all the while
WATCHERS = 4
WATCH_PAUSE_S = 0.1
NEW_CELL = "cell-3"
NEW_SHARE = 0.2  # of the rate is what newcomers add to it
# Of the length of the traffic: for how long newcomers take part at least, however late their cell comes. It lasts into
# the absence of the control plane.
NEW_LEAST = 0.3


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    seconds: float
    tenants: int
    rate: float
    seed: int
    keep: bool
    folder: Path
    shops: str = "shop"  # what the tenants' slugs begin with
    new_cell: bool = True
    noise: bool = True
    zero: bool = True


class Demo:
    """One run on a fleet that is up."""

    def __init__(self, fleet: Fleet, options: Options, teller: Teller, stack: AsyncExitStack) -> None:
        self._fleet = fleet
        self._options = options
        self._teller = teller
        self._stack = stack
        self._run = f"{options.shops}-{options.seed}"
        self._control_plane = ControlPlane(fleet.control_plane.url, fleet.control_plane.operator_key)
        stack.push_async_callback(self._control_plane.aclose)
        self._routers = [Product(url) for url in fleet.router_urls]
        for router in self._routers:
            stack.push_async_callback(router.aclose)
        self._outside = Outside.at(fleet.gateway.url, fleet.gateway.token)
        stack.push_async_callback(self._outside.aclose)

    @property
    def _shards(self) -> dict[str, dict[str, str]]:
        return {cell.name: cell.shards for cell in self._fleet.cells.values()}

    async def run(self) -> Outcome:
        """Everything, in order."""
        cast, scratch = await self.sign_up()
        verdict = await self.negative_control(scratch)
        left = await self.leave()
        noise = await self.noise()
        record, happened, joined, history = await self.traffic(cast)
        with self._teller.step("reading the books: every shard of every cell, past the product"):
            casts = (cast, joined.cast) if joined else (cast,)
            written = [*(order for each in casts for order in each.first_orders), *record.acknowledged]
            written += noise.written.acknowledged
            unknown = record.unacknowledged | noise.written.unacknowledged
            homes = await self._control_plane.homes()
            mine = {a.tenant: homes[a.tenant] for each in casts for a in each.accounts if a.tenant in homes}
            rows = [row for row in await ledger.read(self._shards) if not row.reference.startswith(SEEDED)]
            audit = books.audit(written, unknown, rows, mine | noise.homes(homes), stale=record.stale)
        for line in audit.words():
            self._teller.verdict(audit.balanced, line)
        judged = judge([history])
        for line in (judged.words(), *judged.examples()):
            self._teller.verdict(judged.good, line)
        effects = await self.effects(mine, {a.order: a.tenant for a in written if a.pending and a.tenant in mine})
        busiest = cast.accounts[0]
        who = (busiest.tenant, busiest.slug)
        found = (record, audit, verdict, happened, *who, joined, effects, left, judged)
        outcome = Outcome(self._options.seconds, *found)
        self._tell(outcome, busiest, noise)
        return outcome

    async def effects(self, homes: Iterable[str], promised: Mapping[str, str]) -> Effects:
        """What happened at the gateway and at the merchants' servers, once every order has ended.

        ``promised`` are the orders, with their tenants, that clients were told to be on their way to be paid.
        """
        tenants = [tenant_number(tenant) for tenant in homes]
        with self._teller.step("the books of the gateway: every charge and every webhook, outside of the fleet"):
            await self._outside.settled(self._shards, tenants)
            effects = await self._outside.books(self._shards, tenants, promised)
        self._teller.verdict(effects.balanced, effects.charges())
        for line in effects.examples():
            self._teller.verdict(False, line)
        return effects

    async def leave(self) -> Left | None:
        """Three tenants leave the old shop under their own traffic, and one cannot; None where there is no shop."""
        if self._fleet.zero is None:
            return None
        with self._teller.step("cell zero: customers of the old shop leave it while they order by its old URLs"):
            shop = OldShop.of(self._fleet)
            self._stack.push_async_callback(shop.aclose)
            async with self._fleet.operator() as operator:
                left = await Leaving(self._fleet, shop, operator, self._teller.say).run(self._control_plane.homes)
        self._teller.verdict(left.good, left.words())
        for line in left.books():
            self._teller.verdict(left.audit.balanced, line)
        self._teller.say(left.burn_down())
        return left

    async def noise(self) -> Noise:
        """Noisy tenants beside quiet ones, for a few seconds, before anything else happens."""
        if not self._options.noise:
            return Noise()
        with self._teller.step("noisy neighbours: two tenants with heavy queries beside eight quiet ones"):
            folder = self._stack.enter_context(TemporaryDirectory(prefix="cellwall-noise-"))
            return await make_noise(self._fleet, self._stack, Path(folder), self._teller.say, self._teller.detail)

    def _tell(self, outcome: Outcome, account: Account, noise: Noise) -> None:
        if noise.verdicts:
            self._teller.show(tables.summary(noise.verdicts, judged=False))
        self._teller.table("What happened", outcome.lines())
        if outcome.failures:
            self._teller.lines("Failed requests that the demo did not cause", outcome.examples())
        for heading, lines in evidence(self._fleet, account, outcome.happened.move):
            self._teller.lines(heading, lines)

    async def sign_up(self) -> tuple[Cast, Cast]:
        """The tenants, and a scratch one for the negative control."""
        count = self._options.tenants
        door = self._fleet.spec.front_door_host
        shops = self._options.shops
        slugs = [f"{shops}-{n:02}" for n in range(1, count + 1)]
        with self._teller.step(f"signing up {count} tenants and a scratch one at the front door, {door}"):
            everybody = await sign_up(self._routers, door, [*slugs, f"{shops}-scratch"], self._run, self._outside)
        cast = Cast(everybody.accounts[:count], everybody.first_orders[:count])
        return cast, Cast(everybody.accounts[count:], everybody.first_orders[count:])

    async def negative_control(self, scratch: Cast) -> Verdict:
        """`LabError` where the books missed the broken fence."""
        root = parse_root(self._fleet.state.envelope_root)

        def cell(name: str) -> Pool:
            pool = Pool(*split_address(self._fleet.cells[name].address), name=name)
            self._stack.callback(pool.close)
            return pool

        bench = Bench(self._control_plane, self._shards, cell, lambda name: derive(root, Purpose.ENVELOPE, name))
        with self._teller.step("negative control: the fence is off, a scratch tenant moves, a stale router writes on"):
            verdict = await negative_control(bench, scratch, self._run)
        self._teller.verdict(verdict.caught, verdict.words())
        if not verdict.caught:
            raise LabError("books that miss a broken fence prove nothing")
        return verdict

    async def traffic(self, cast: Cast) -> tuple[Record, Happened, Joined | None, History]:
        """The measured traffic, and the incidents beside it; and what a few clients saw of some registers meanwhile."""
        options, record = self._options, Record()
        names = self._fleet.spec.router_names
        ports = [split_address(url.removeprefix("http://")) for url in self._fleet.router_urls]
        pools = [Pool(*at, name=name, size=CONNECTIONS) for name, at in zip(names, ports, strict=True)]
        for pool in pools:
            self._stack.callback(pool.close)
            await pool.warm()
        driver = Driver(pools, cast.accounts, cast.orders, self._run, record)
        intents = schedule(Traffic(options.tenants, options.rate, options.seconds, options.seed))
        incidents = Incidents(self._fleet, self._control_plane, driver.seconds_in, self._teller.say)
        when = Timetable.over(options.seconds)
        victim = Victim(names[0], ports[0][1], self._fleet.plan.log(names[0]))
        await self._outside.faults()
        await self._control_plane.leave_noise_alone()  # the busiest tenant is meant to be: it would be throttled
        title = f"open-loop traffic: {len(intents)} requests in {options.seconds:.0f} s through {len(pools)} routers"
        joined: Joined | None = None
        routers = dict(zip(names, ports, strict=True))
        watching = recorded(routers, cast.accounts[:WATCHED], clients=WATCHERS, pause_s=WATCH_PAUSE_S)
        with self._teller.step(title):
            async with watching as history, asyncio.TaskGroup() as group:
                work = [group.create_task(driver.run(intents))]

                async def grow() -> None:
                    nonlocal joined
                    if options.new_cell:
                        joined = await self.join(driver.seconds_in)
                        work.append(group.create_task(driver.also(self._newcomers(driver, joined, len(intents)))))

                happening = group.create_task(incidents.run(when, cast.accounts[0].tenant, victim, grow))
                while pending := [task for task in (*work, happening) if not task.done()]:
                    await asyncio.wait(pending, timeout=DETAIL_EVERY_S)
                    self._teller.detail(self._progress(driver, record))
        return record, happening.result(), joined, history

    async def join(self, now: Callable[[], float]) -> Joined:
        """One more cell, and the first tenants in it, by the front door."""
        began = now()
        how = await add_cell(self._fleet, NEW_CELL, self._teller.say)
        ready = now()
        slugs = [f"{self._options.shops}-new-{n}" for n in range(1, NEWCOMERS + 1)]
        self._teller.say(f"{NEW_CELL} takes tenants; signing up {len(slugs)} at the front door")
        door = self._fleet.spec.front_door_host
        cast = await sign_up(self._routers, door, slugs, self._run, self._outside)
        joined = Joined(NEW_CELL, how, ready - began, now() - began, cast)
        self._teller.verdict(joined.good, f"{NEW_CELL} was added under traffic; {joined.words()}")
        return joined

    def _newcomers(self, driver: Driver, joined: Joined, number: int) -> tuple[Intent, ...]:
        """The requests of the tenants in the new cell, from now to the end of the traffic or a little longer."""
        options, at = self._options, driver.seconds_in()
        seconds = max(options.seconds - at, options.seconds * NEW_LEAST)
        first = driver.admit(joined.cast.accounts, joined.cast.orders)
        traffic = Traffic(len(joined.cast.accounts), options.rate * NEW_SHARE, seconds, options.seed)
        return beside(schedule(traffic), number=number, at=at, tenant=first)

    def _progress(self, driver: Driver, record: Record) -> str:
        at, planned = driver.seconds_in(), self._options.seconds
        failed = sum(not f.retried for f in record.failures)
        counts = f"{record.sent} sent, {record.succeeded} answered, {failed} failed"
        when = f"{at:.0f} of {planned:.0f} s" if at <= planned else f"{at:.0f} s, past {planned:.0f} s, newcomers go on"
        return f"{when}: {counts}"


async def demo(options: Options, teller: Teller) -> int:
    """The fleet, the run, and the end of the fleet. Returns the exit status."""
    spec = FleetSpec(zero=ZeroSpec() if options.zero else None)
    fleet = Fleet(spec, options.folder, lambda text: teller.say(f"  {text}"))
    kept = failed = False
    try:
        with teller.step(f"starting a fleet in {options.folder}"):
            await fleet.down()  # what a demo that was killed with SIGKILL left behind
            await fleet.up()
        async with AsyncExitStack() as stack:
            outcome = await Demo(fleet, options, teller, stack).run()
        kept, failed = options.keep, not outcome.good
    except Exception:
        failed = True
        raise
    finally:
        if not kept:
            with teller.step("stopping the fleet"):
                await finished(fleet.down(keep_logs=failed))
        if failed and fleet.folder.logs.exists():
            teller.say(f"the logs of this run are in {fleet.folder.logs}, until the next demo or `down` there")
    teller.verdict(outcome.good, outcome.verdict())
    if kept:
        teller.say(f"the fleet stays up; stop it with: {sys.executable} -m infra.local down --state {options.folder}")
    return 0 if outcome.good else 1


async def interruptible(options: Options, teller: Teller) -> int:
    """`demo` under Ctrl-C and SIGTERM: the first one ends it cleanly, more of them change nothing."""
    task = asyncio.ensure_future(demo(options, teller))
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        teller.say("still stopping" if interrupted else "interrupted: stopping everything")
        if not interrupted:
            interrupted = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        return commandline.INTERRUPTED
    except BaseExceptionGroup as group:
        teller.verdict(False, _first_words(group))
        return 1
    except LocalFleetError as e:
        teller.verdict(False, str(e))
        return 1 if isinstance(e, StartFailedError) else commandline.MISUSED
    except (LabError, ExchangeError, httpx.HTTPError, asyncpg.PostgresError, OSError) as e:
        teller.verdict(False, f"{type(e).__name__}: {e}")
        return 1


def _first_words(group: BaseExceptionGroup[BaseException]) -> str:
    """The first error inside of nested groups, with its kind."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", default=25.0, show_default=True, type=click.FloatRange(min=5), help="Length of the traffic.")
@click.option(
    "--tenants", default=20, show_default=True, type=click.IntRange(min=1, max=200), help="Tenants to sign up."
)
@click.option(
    "--rate", default=120.0, show_default=True, type=click.FloatRange(min=1), help="Requests a second, in all."
)
@click.option("--seed", default=1, show_default=True, help="Seed of the schedule.")
@click.option("--new-cell/--no-new-cell", default=True, show_default=True, help="Add a cell while the traffic runs.")
@click.option("--noise/--no-noise", default=True, show_default=True, help="Noisy tenants first, for a few seconds.")
@click.option("--zero/--no-zero", default=True, show_default=True, help="Tenants leave an old shop, cell zero.")
@click.option("--keep", is_flag=True, help="Leave the fleet running at the end.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the demo's fleet.")
def main(
    seconds: float,
    tenants: int,
    rate: float,
    seed: int,
    new_cell: bool,
    noise: bool,
    zero: bool,
    keep: bool,
    state: Path | None,
) -> None:
    """Start a fleet, move a tenant and add a cell under live traffic, break things, and check the books."""
    default = default_folder()
    folder = state.absolute() if state else default.with_name(f"{default.name}-demo")
    options = Options(seconds, tenants, rate, seed, keep, folder, new_cell=new_cell, noise=noise, zero=zero)
    with Teller(console()) as teller:
        try:
            with only_one(folder, "demo"):
                status = asyncio.run(interruptible(options, teller))
        except LocalFleetError as e:
            teller.verdict(False, str(e))
            status = commandline.MISUSED
    sys.exit(status)


if __name__ == "__main__":
    commandline.run(main, "loadtest.demo")
