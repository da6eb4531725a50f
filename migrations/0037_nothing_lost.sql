-- Jobs that wait for storage, failed jobs that can go on, the adapters that running attempts are about to name, and who
-- sweeps next.

alter table jobs
    -- Since when storage refuses what the job writes or reads, and how many attempts it has ended in a row.
    add column waiting_since   timestamptz,
    add column waits           int         not null default 0,
    -- A job that failed through no fault of its request keeps its state until then, and can be resumed.
    add column resumable_until timestamptz,
    add constraint resumable_if_failed check (resumable_until is null or status = 'failed');

-- The adapter whose files an attempt stores or has stored, before a model's row names it: nobody removes them while the
-- attempt runs. Files are named by their content, so another model's removal may mean the very same ones.
create table adapter_holds (
    job     uuid not null references jobs on delete cascade,
    attempt int  not null,
    adapter text not null,
    primary key (job, adapter)
);
create index adapter_holds_of_adapter on adapter_holds (adapter);

-- Work that one process does for all, and when it is due again.
create table chores (
    name   text        primary key,
    due_at timestamptz not null
);

-- What becomes of a job whose attempt ended without a model. `p_outcome` is 'failed' (the request's fault) or 'broken'
-- (the server's), which are not tried again; 'retry' (also: the worker was lost); 'storage', which is tried again until
-- the caller makes it 'broken'; 'stopped' or 'released'. `p_failures` counts this attempt. A stop that the client asked
-- for wins over trying again.
create or replace function next_status(p_stop text, p_outcome text, p_failures int, p_max_failures int)
returns job_status language sql immutable as $$
    select case when p_stop = 'cancel' then 'cancelled'::job_status
                when p_outcome in ('failed', 'broken') then 'failed'
                when p_stop = 'pause' then 'paused'
                when p_outcome = 'retry' and p_failures >= p_max_failures then 'failed'
                else 'queued' end
$$;

-- How long a job waits for storage before its next attempt: 10 seconds, twice as long after each, up to 5 minutes.
create function storage_delay(p_waits int) returns interval
language sql immutable as $$
    select make_interval(secs => least(300, 5 * 2 ^ least(p_waits, 6)))
$$;

-- How long the state of a job is kept that failed through no fault of its request.
create function kept_after_failure() returns interval
language sql immutable as $$
    select interval '7 days'
$$;
