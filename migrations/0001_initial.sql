-- Files, fine-tuned models, jobs and their events. Never edit this file once it has landed: add the next one.

create table files (
    id           text        primary key,                       -- file-…
    organization text        not null,
    filename     text        not null,
    purpose      text        not null,
    bytes        bigint      not null,
    created_at   timestamptz not null default now()
);
create index files_listed on files (organization, created_at, id);

create table fine_tuned_models (
    organization text        not null,
    name         text        not null,                          -- ft:{base}:{organization}:{suffix}:{id}
    base         text        not null,
    adapter      text        not null,                          -- SHA-256 of the generation in the blobs
    job          text,                                          -- public id
    created_at   timestamptz not null default now(),
    primary key (organization, name)
);
create index fine_tuned_models_adapter on fine_tuned_models (adapter);

create type job_status as enum ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled');

-- One row per job. The row is the queue entry and the API's resource: there is no second table to keep in step.
create table jobs (
    key              uuid        primary key default gen_random_uuid(),
    id               text        not null unique,               -- ft-… or ftjob-…
    api              text        not null check (api in ('fine_tunes', 'fine_tuning_jobs')),
    organization     text        not null,
    status           job_status  not null default 'queued',
    spec             jsonb       not null,                      -- the request; never changed
    resolved         jsonb,                                     -- the settings that training uses
    stop_request     text        check (stop_request in ('cancel', 'pause')),
    checkpoint       jsonb,                                     -- survives attempts
    attempt          int         not null default 0,            -- the fence: moves with every claim
    failures         int         not null default 0,            -- lost and failed attempts; bounds the retries
    run_after        timestamptz not null default now(),
    lease_owner      text,
    lease_expires_at timestamptz,
    error            jsonb,
    fine_tuned_model text,
    trained_tokens   bigint,
    result_files     text[]      not null default '{}',
    estimated_finish bigint,                                    -- unix seconds
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),        -- last change of status
    claimed_at       timestamptz,
    finished_at      timestamptz,
    constraint lease_iff_running   check ((status = 'running') = (lease_owner is not null and lease_expires_at is not null)),
    constraint stop_while_running  check (stop_request is null or status = 'running'),
    constraint finished_iff_final  check ((finished_at is not null) = (status in ('succeeded', 'failed', 'cancelled'))),
    constraint error_iff_failed    check ((error is not null) = (status = 'failed')),
    constraint model_iff_succeeded check ((fine_tuned_model is not null) = (status = 'succeeded'))
);
create index jobs_listed    on jobs (organization, api, created_at, id);
create index jobs_claimable on jobs (run_after, created_at) where status = 'queued';
create index jobs_leased    on jobs (lease_expires_at) where status = 'running';
create index jobs_unfinished on jobs (organization) where status in ('queued', 'running', 'paused');
create index jobs_turn      on jobs (organization, claimed_at desc nulls last);

create table job_events (
    seq     bigint      generated always as identity primary key,
    job     uuid        not null references jobs on delete cascade,
    attempt int         not null,
    at      timestamptz not null default clock_timestamp(),
    level   text        not null default 'info' check (level in ('info', 'warn', 'error')),
    kind    text        not null default 'message' check (kind in ('message', 'metrics')),
    message text        not null,
    data    jsonb
);
create index job_events_of_job on job_events (job, seq);

-- A function, so that a client needs no BEGIN of its own, and in plpgsql, so that the statement after the lock sees what
-- the claim before it wrote. Claims are rare (jobs run for minutes), so one lock for all of them costs nothing.
-- The organisation with the fewest running jobs goes first, then the one whose last claim is longest ago, then the oldest
-- job. SKIP LOCKED: never wait for a row that is being cancelled.
create function claim_job(p_worker text, p_lease interval) returns setof jobs language plpgsql as $$
begin
    perform pg_advisory_xact_lock(hashtext('jobs.claim'));
    return query
    with waiting as (
        select distinct organization from jobs where status = 'queued' and run_after <= now()
    ), turn as (
        select organization,
               (select count(*) from jobs r where r.organization = w.organization and r.status = 'running') as running,
               (select max(r.claimed_at) from jobs r where r.organization = w.organization) as last_claim
          from waiting w
    ), next as (
        select j.key from jobs j join turn t using (organization)
         where j.status = 'queued' and j.run_after <= now()
         order by t.running, t.last_claim nulls first, j.created_at, j.key
         limit 1 for update of j skip locked
    )
    update jobs j
       set status = 'running', attempt = j.attempt + 1, lease_owner = p_worker, lease_expires_at = now() + p_lease,
           claimed_at = now(), updated_at = now()
      from next where j.key = next.key
    returning j.*;
end $$;

-- A notification is only a hint: its payload is the job's key, and whoever hears it reads the rows again.
create function notify_job() returns trigger language plpgsql as $$
begin
    perform pg_notify('jobs', new.key::text);
    return null;
end $$;
create function notify_job_event() returns trigger language plpgsql as $$
begin
    perform pg_notify('jobs', new.job::text);
    return null;
end $$;
create trigger jobs_inserted after insert on jobs for each row execute function notify_job();
-- Not the heartbeats: they change nothing that anyone waits for.
create trigger jobs_changed after update on jobs for each row
    when ((old.status, old.stop_request, old.resolved, old.estimated_finish)
          is distinct from (new.status, new.stop_request, new.resolved, new.estimated_finish))
    execute function notify_job();
create trigger job_events_inserted after insert on job_events for each row execute function notify_job_event();
