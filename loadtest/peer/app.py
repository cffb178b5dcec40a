"""``python -m loadtest.peer.app``: the same calls as the product's, on FastAPI, the SQLAlchemy ORM and one database.

Written as its frameworks' tutorials teach it and no worse: pooled connections, indices, one transaction a request,
idempotent creates, several connections at once. What it lacks is what is being measured: nothing keeps one tenant's
work from another's. Tenants are made by whoever has the token in ``CELLWALL_PEER_TOKEN``.
"""

import hashlib
import hmac
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import distinct, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.sql.functions import func

from loadtest.peer.tables import Base, Done, Line, Order, Product, Tenant

POOL: Final = 10
OVERFLOW: Final = 10
KEEP_ALIVE_S: Final = 75
PAGE_MAX: Final = 200
BEST_SOLD: Final = 10


class Settings(BaseSettings):
    """From the environment, ``CELLWALL_PEER_*``."""

    model_config = SettingsConfigDict(env_prefix="CELLWALL_PEER_", hide_input_in_errors=True)

    dsn: str
    token: Annotated[str, Field(min_length=32)]
    port: int


class SignUp(BaseModel):
    """A new tenant."""

    id: int
    slug: str
    host: str


class ProductAdd(BaseModel):
    """A new product."""

    sku: str
    name: str
    price_cents: Annotated[int, Field(ge=0)]
    currency: str


class LineAdd(BaseModel):
    """What is ordered."""

    product_id: UUID
    quantity: Annotated[int, Field(ge=1)]


class OrderAdd(BaseModel):
    """A new order."""

    lines: Annotated[list[LineAdd], Field(min_length=1, max_length=100)]
    reference: str | None = None


class ReportAdd(BaseModel):
    """A report that is made after the answer."""

    kind: str
    first: Annotated[datetime, Field(alias="from")]
    last: Annotated[datetime, Field(alias="to")]


def application(engine: AsyncEngine, token: str) -> FastAPI:
    """The whole peer on one database."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    async def session() -> AsyncIterator[AsyncSession]:  # of scope "function": committed before the answer is sent
        async with sessions() as opened, opened.begin():
            yield opened

    async def tenant(
        request: Request,
        db: Annotated[AsyncSession, Depends(session, scope="function")],
        authorization: Annotated[str, Header()] = "",
    ) -> Tenant:
        host = request.headers.get("host", "").partition(":")[0]
        found = await db.scalar(select(Tenant).where(Tenant.host == host))
        if found is None:
            raise HTTPException(404, "no such host")
        digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        if not hmac.compare_digest(found.key_hash, digest):
            raise HTTPException(401, "no such key")
        return found

    db_type = Annotated[AsyncSession, Depends(session, scope="function")]
    tenant_type = Annotated[Tenant, Depends(tenant, scope="function")]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/signup", status_code=201)
    async def sign_up(body: SignUp, db: db_type, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "sign-up needs the token")
        key = secrets.token_urlsafe(24)
        digest = hashlib.sha256(key.encode()).hexdigest()
        db.add(Tenant(id=body.id, slug=body.slug, host=body.host, key_hash=digest))
        return {"tenant": f"t{body.id}", "slug": body.slug, "host": body.host, "api_key": key}

    @app.post("/v1/products", status_code=201)
    async def add_product(body: ProductAdd, db: db_type, caller: tenant_type) -> dict[str, Any]:
        product = Product(tenant_id=caller.id, **body.model_dump())
        db.add(product)
        await db.flush()
        return product_view(product)

    @app.get("/v1/products/{product_id}")
    async def get_product(product_id: UUID, db: db_type, caller: tenant_type) -> dict[str, Any]:
        found = await db.scalar(select(Product).where(Product.tenant_id == caller.id, Product.id == product_id))
        if found is None:
            raise HTTPException(404, "no such product")
        return product_view(found)

    @app.post("/v1/orders", status_code=201)
    async def add_order(
        body: OrderAdd, db: db_type, caller: tenant_type, idempotency_key: Annotated[str, Header()]
    ) -> Any:
        return await create_order(db, caller, body, idempotency_key)

    @app.get("/v1/orders/{order_id}")
    async def get_order(order_id: UUID, db: db_type, caller: tenant_type) -> dict[str, Any]:
        found = await db.scalar(select(Order).where(Order.tenant_id == caller.id, Order.id == order_id))
        if found is None:
            raise HTTPException(404, "no such order")
        return order_view(found)

    @app.get("/v1/orders")
    async def list_orders(
        db: db_type, caller: tenant_type, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 20
    ) -> dict[str, Any]:
        newest = select(Order).where(Order.tenant_id == caller.id).order_by(Order.number.desc()).limit(limit)
        return {"items": [order_view(order) for order in await db.scalars(newest)], "next": None}

    @app.get("/v1/reports/summary")
    async def summary(
        db: db_type, caller: tenant_type, days: Annotated[int, Query(ge=1, le=366)] = 30
    ) -> dict[str, Any]:
        return await summarise(db, caller.id, datetime.now(UTC) - timedelta(days=days))

    @app.post("/v1/reports", status_code=202)
    async def report(body: ReportAdd, work: BackgroundTasks, caller: tenant_type) -> dict[str, str]:
        async def make() -> None:
            async with sessions() as own:
                await summarise(own, caller.id, body.first.replace(tzinfo=UTC))

        work.add_task(make)
        return {"status": "queued"}

    return app


async def create_order(db: AsyncSession, tenant: Tenant, body: OrderAdd, key: str) -> JSONResponse:
    """One order; a repeat of its key gets the first answer."""
    taken = insert(Done).values(tenant_id=tenant.id, key=key, answer={}).on_conflict_do_nothing()
    if not (await db.execute(taken.returning(Done.key))).first():
        before = await db.scalar(select(Done.answer).where(Done.tenant_id == tenant.id, Done.key == key))
        return JSONResponse(before, 201)
    wanted = {line.product_id for line in body.lines}
    found = await db.scalars(select(Product).where(Product.tenant_id == tenant.id, Product.id.in_(wanted)))
    products = {product.id: product for product in found}
    if wanted - products.keys():
        raise HTTPException(422, "no such product")
    number = await db.scalar(
        update(Tenant)
        .where(Tenant.id == tenant.id)
        .values(orders_made=Tenant.orders_made + 1)
        .returning(Tenant.orders_made)
    )
    lines = [
        Line(
            line=n,
            product_id=line.product_id,
            quantity=line.quantity,
            unit_price_cents=products[line.product_id].price_cents,
        )
        for n, line in enumerate(body.lines, 1)
    ]
    order = Order(
        tenant_id=tenant.id,
        number=number,
        reference=body.reference,
        total_cents=sum(line.quantity * line.unit_price_cents for line in lines),
        currency=products[body.lines[0].product_id].currency,
        lines=lines,
    )
    db.add(order)
    await db.flush()
    answer = order_view(order)
    await db.execute(update(Done).where(Done.tenant_id == tenant.id, Done.key == key).values(answer=answer))
    return JSONResponse(answer, 201)


async def summarise(db: AsyncSession, tenant: int, since: datetime) -> dict[str, Any]:
    """The same question that the product answers, on the peer's tables."""
    recent = (Order.tenant_id == tenant, Order.created_at >= since)
    totals = (
        select(
            Order.currency,
            func.count(),
            func.sum(Order.total_cents),
            func.percentile_disc(0.5).within_group(Order.total_cents),
            func.percentile_disc(0.95).within_group(Order.total_cents),
        )
        .where(*recent)
        .group_by(Order.currency)
    )
    revenue = func.sum(Line.quantity * Line.unit_price_cents)
    best = (
        select(
            Line.product_id,
            Product.sku,
            Order.currency,
            func.count(distinct(Order.id)),
            func.sum(Line.quantity),
            revenue,
        )
        .join(Order, Order.id == Line.order_id)
        .join(Product, Product.id == Line.product_id)
        .where(*recent)
        .group_by(Line.product_id, Product.sku, Order.currency)
        .order_by(revenue.desc())
        .limit(BEST_SOLD)
    )
    rows: Sequence[Any] = (await db.execute(totals)).all()
    sold: Sequence[Any] = (await db.execute(best)).all()
    return {"totals": [_plain(row) for row in rows], "products": [_plain(row) for row in sold]}


def _plain(row: Sequence[Any]) -> list[Any]:
    """Sums come as decimals, ids as UUIDs."""
    return [value if isinstance(value, str) else str(value) if isinstance(value, UUID) else int(value) for value in row]


def product_view(product: Product) -> dict[str, Any]:
    """As JSON."""
    shown = {"sku": product.sku, "name": product.name, "price_cents": product.price_cents}
    return {"id": str(product.id), **shown, "currency": product.currency}


def order_view(order: Order) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": str(order.id),
        "number": order.number,
        "reference": order.reference,
        "status": order.status,
        "total_cents": order.total_cents,
        "currency": order.currency,
        "lines": [
            {"product_id": str(line.product_id), "quantity": line.quantity, "unit_price_cents": line.unit_price_cents}
            for line in order.lines
        ],
    }


def main() -> None:
    """Serve on loopback until SIGTERM."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # from the environment
    except ValueError as e:
        sys.stderr.write(f"peer: {e}\n")
        sys.exit(2)
    dsn = settings.dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(dsn, pool_size=POOL, max_overflow=OVERFLOW)
    uvicorn.run(
        application(engine, settings.token),
        host="127.0.0.1",
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )


if __name__ == "__main__":
    main()
