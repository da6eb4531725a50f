-- What came of the items of a run, one row for each. The key makes an item count once, however often a run is begun.

create table eval_output_items (
    run        text        not null references eval_runs on delete cascade,
    number     integer     not null,                    -- place in the data source, from 0
    id         text        not null unique,             -- outputitem_…
    status     text        not null check (status in ('pass', 'fail', 'error')),
    item       jsonb       not null,
    results    jsonb       not null,                    -- one for each criterion, in their order
    sample     jsonb       not null,
    usage      jsonb       not null,                    -- one entry for each request to a model
    created_at timestamptz not null default now(),
    primary key (run, number)
);
