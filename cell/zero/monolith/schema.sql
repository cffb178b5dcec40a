-- The database of the old shop, as it grew since 2004. One database for all customers; a customer (KND) is a merchant
-- with staff (BEN), articles (ART) and orders (AUFK heads, AUFP positions). Nobody here has heard of cells.
--
-- How to read it:
--   dates     text 'DD.MM.YYYY HH:MM:SS', by the server's clock, which is UTC
--   money     text with a decimal comma, no thousands: '12,50'; a hand-made row may say anything
--   addresses one column, joined with pipes
--   currency  whg: 'E' = EUR, 'D' = USD, 'P' = GBP
--   flags     'J' or 'N'
--   customer  only KND, BEN, ART and AUFK carry knr. AUFP reaches it over anr, SESS over bnr.

-- Customers. adr: 'company|street|postcode|town|country'. kz is the host name's first label. tar: 'S', 'M', 'L'.
CREATE TABLE knd (
    knr  integer PRIMARY KEY,
    kz   varchar(40)  NOT NULL UNIQUE,
    adr  varchar(400) NOT NULL,
    tar  char(1)      NOT NULL DEFAULT 'S',
    gesp char(1)      NOT NULL DEFAULT 'N',
    ums  varchar(20)  NOT NULL DEFAULT '0,00',   -- turnover of all orders; the cron job's
    anl  varchar(19)  NOT NULL
);

-- Staff who log in. adr: 'surname|first name|street|postcode|town'. rl: 0 looks, 1 works, 2 manages, 3 owns.
-- pwd: 'SALT$HEX', HEX = md5(SALT + password). login keeps the case it was typed in and is compared in lower case.
CREATE TABLE ben (
    bnr   serial PRIMARY KEY,
    knr   integer      NOT NULL REFERENCES knd,
    login varchar(254) NOT NULL,
    pwd   varchar(120) NOT NULL,
    adr   varchar(400) NOT NULL,
    rl    smallint     NOT NULL DEFAULT 1,
    anl   varchar(19)  NOT NULL
);
CREATE UNIQUE INDEX ben_login ON ben (knr, lower(login));

-- Articles. best: the order code, unique for the customer. vk: units sold; the cron job counts it anew from AUFP.
CREATE TABLE art (
    artnr serial PRIMARY KEY,
    knr   integer      NOT NULL REFERENCES knd,
    best  varchar(64)  NOT NULL,
    bez   varchar(200) NOT NULL,
    pr    varchar(20)  NOT NULL,
    whg   char(1)      NOT NULL DEFAULT 'E',
    vk    integer      NOT NULL DEFAULT 0,
    anl   varchar(19)  NOT NULL,
    aend  varchar(19)  NOT NULL,
    UNIQUE (knr, best)
);

-- Order heads. lfd: 1, 2, 3 … for each customer, without a gap. st: 'N' new. mahn: reminders sent; the cron job's.
CREATE TABLE aufk (
    anr  serial PRIMARY KEY,
    knr  integer      NOT NULL REFERENCES knd,
    lfd  integer      NOT NULL,
    ref  varchar(120),
    st   char(1)      NOT NULL DEFAULT 'N',
    sum  varchar(20)  NOT NULL,
    whg  char(1)      NOT NULL,
    bnr  integer      NOT NULL,                  -- who made it; BEN rows may be gone, so no reference
    dat  varchar(19)  NOT NULL,
    mahn smallint     NOT NULL DEFAULT 0,
    UNIQUE (knr, lfd)
);

-- Order positions. No knr. ep: the unit price at the time of the order.
CREATE TABLE aufp (
    pnr   serial PRIMARY KEY,
    anr   integer     NOT NULL REFERENCES aufk,
    pos   smallint    NOT NULL,
    artnr integer     NOT NULL REFERENCES art,
    mg    integer     NOT NULL,
    ep    varchar(20) NOT NULL,
    UNIQUE (anr, pos)
);

-- Sessions of the cookie SITZUNG. No knr.
CREATE TABLE sess (
    sid varchar(64) PRIMARY KEY,
    bnr integer     NOT NULL REFERENCES ben,
    bis varchar(19) NOT NULL
);

-- What the cron job and the pages write for whoever reads it. No primary key: it cannot be replicated, and need not.
CREATE TABLE prot (
    zeit varchar(19) NOT NULL,
    txt  text        NOT NULL
);
