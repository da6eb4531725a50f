-- API keys with their organisation and limits, and what each used by day.

create table api_keys (
    id                  text        primary key,                -- key_…
    organization        text        not null,
    name                text,
    hash                bytea       not null unique check (octet_length(hash) = 32),    -- SHA-256 of the key's text
    masked              text        not null,                   -- what may be shown of it
    admin               boolean     not null default false,
    requests_per_minute bigint      check (requests_per_minute > 0),    -- null: the configuration's
    tokens_per_minute   bigint      check (tokens_per_minute > 0),
    created_at          timestamptz not null default now(),
    expires_at          timestamptz,
    revoked_at          timestamptz,
    last_used_on        date                                    -- UTC
);
create index api_keys_listed on api_keys (created_at, id);

-- A notification empties the caches of keys in every server. Not for the days of use: nobody waits for them.
create function notify_api_keys() returns trigger language plpgsql as $$
begin
    perform pg_notify('api_keys', '');
    return null;
end $$;
create trigger api_keys_inserted after insert or delete on api_keys
    for each statement execute function notify_api_keys();
create trigger api_keys_changed
    after update of organization, hash, admin, requests_per_minute, tokens_per_minute, expires_at, revoked_at on api_keys
    for each statement execute function notify_api_keys();

-- Sums, not requests: a row per key, model and UTC day, whatever the traffic. Rows outlive their keys and models.
create table usage_daily (
    organization      text   not null,
    day               date   not null,
    key               text   not null,                          -- key_…, or where the caller had none of the table's
    model             text   not null,                          -- as asked for
    base              text   not null,                          -- the base model, which has the price
    requests          bigint not null default 0,
    prompt_tokens     bigint not null default 0,                -- cached ones included
    cached_tokens     bigint not null default 0,
    completion_tokens bigint not null default 0,
    trained_tokens    bigint not null default 0,
    primary key (organization, day, key, model, base)
);
create index usage_daily_of_all on usage_daily (day);

-- The last batch of sums that each process wrote: a batch that is sent again, because nobody knows whether it arrived, is
-- not added twice.
create table usage_writers (
    id         uuid        primary key,
    batch      bigint      not null,
    written_at timestamptz not null default now()
);

-- Who pays for the training; null for jobs older than the keys.
alter table jobs add column api_key text;
