-- How fast machines train models: what calibrations and finished jobs have shown, so that the next job's duration is known
-- before it runs.

create table training_rates (
    machine    text        not null,                            -- processor and threads
    model      text        not null,                            -- id of the base model
    setup      text        not null,                            -- version, device, how weights are held, rank
    tokens     float8      not null check (tokens > 0),         -- trained on …
    seconds    float8      not null check (seconds > 0),        -- … in this time
    updated_at timestamptz not null default now(),
    primary key (machine, model, setup)
);
