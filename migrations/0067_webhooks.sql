-- What webhooks tell. Whoever changes a state that they tell of adds a row to `webhook_events`, in the statement of the
-- change: organization, type and subject are enough. Servers with webhooks in their configuration do the rest; see
-- store/webhooks.rs.

create table webhook_events (
    id           text        primary key default 'evt_' || replace(gen_random_uuid()::text, '-', ''),
    organization text        not null,
    type         text        not null,                          -- fine_tuning.job.succeeded, …
    subject      text        not null,                          -- id of what changed
    created_at   timestamptz not null default now(),
    shared_out   boolean     not null default false             -- true: its deliveries are in the table below
);
create index webhook_events_new on webhook_events (created_at) where not shared_out;
create index webhook_events_old on webhook_events (created_at);

-- An event that one endpoint has not taken yet. `due_at` is also the lease: whoever sends moves it into the future.
create table webhook_deliveries (
    event    text        not null references webhook_events on delete cascade,
    endpoint text        not null,                              -- SHA-256 of the URL, in hexadecimal
    id       text        not null default 'wh_' || replace(gen_random_uuid()::text, '-', ''),
    attempt  int         not null default 0,                    -- the fence: moves with every claim
    due_at   timestamptz not null default now(),
    primary key (event, endpoint)
);
create index webhook_deliveries_due on webhook_deliveries (endpoint, due_at);

-- A trigger, so that no statement that ends a job can forget it.
create function tell_of_ended_job() returns trigger language plpgsql as $$
begin
    insert into webhook_events (organization, type, subject)
    values (new.organization, 'fine_tuning.job.' || new.status, new.id);
    return null;
end $$;
create trigger jobs_told after update on jobs for each row
    when (new.api = 'fine_tuning_jobs' and old.status is distinct from new.status
          and new.status in ('succeeded', 'failed', 'cancelled'))
    execute function tell_of_ended_job();
