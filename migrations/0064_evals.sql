-- Evals: what is measured (`evals`), and runs over items (`eval_runs`). A run is the entry of a queue as well: it is
-- claimed with a lease, and every later write names the attempt that it belongs to.

create table evals (
    id           text        primary key,               -- eval_…
    organization text        not null,
    name         text        not null,
    config       jsonb       not null,                  -- the data source's form, as it is shown
    criteria     jsonb       not null,                  -- graders with an `id` each
    metadata     jsonb       not null default '{}',
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now()
);
create index evals_by_creation on evals (organization, created_at, id);
create index evals_by_change on evals (organization, updated_at, id);

create table eval_runs (
    id           text        primary key,               -- evalrun_…
    eval         text        not null references evals on delete cascade,
    organization text        not null,
    key          text        not null,                  -- id of the API key that its requests count for
    name         text        not null,
    model        text,                                  -- null where answers are given
    data_source  jsonb       not null,
    metadata     jsonb       not null default '{}',
    status       text        not null default 'queued'
                 check (status in ('queued', 'in_progress', 'completed', 'canceled', 'failed')),
    error_code   text,
    error        text,
    attempt      integer     not null default 0,
    leased_until timestamptz,
    created_at   timestamptz not null default now(),
    finished_at  timestamptz
);
create index eval_runs_of_eval on eval_runs (eval, created_at, id);
create index eval_runs_open on eval_runs (created_at, id) where status in ('queued', 'in_progress');
