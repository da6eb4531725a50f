-- Whose turn it is: a row for each organisation with jobs, so that a claim costs the same however many jobs wait, and
-- so that an organisation's jobs can be counted exactly while one more is added.

create table job_turns (
    organization  text        primary key,
    waiting       bigint      not null default 0,               -- its jobs by status; those that have ended are not counted
    running       bigint      not null default 0,
    paused        bigint      not null default 0,
    last_claim    timestamptz,                                  -- of any of its jobs, also of those that are gone
    waiting_since timestamptz not null default now()            -- since when it has had a job that waits, without a gap
);
create index job_turns_next on job_turns (running, last_claim nulls first, waiting_since, organization) where waiting > 0;

insert into job_turns (organization, waiting, running, paused, last_claim, waiting_since)
select organization, count(*) filter (where status = 'queued'), count(*) filter (where status = 'running'),
       count(*) filter (where status = 'paused'), max(claimed_at),
       coalesce(min(created_at) filter (where status = 'queued'), now())
  from jobs group by organization;

-- The next job of an organisation, oldest first.
create index jobs_waiting on jobs (organization, created_at, key) where status = 'queued';
drop index jobs_claimable;
drop index jobs_turn;

create function add_to_turn(p_organization text, p_waiting bigint, p_running bigint, p_paused bigint, p_claim timestamptz)
returns void language sql as $$
    insert into job_turns as turn (organization, waiting, running, paused, last_claim)
    values (p_organization, p_waiting, p_running, p_paused, p_claim)
    on conflict (organization) do update set
        waiting = turn.waiting + excluded.waiting, running = turn.running + excluded.running,
        paused = turn.paused + excluded.paused, last_claim = greatest(turn.last_claim, excluded.last_claim),
        waiting_since = case when turn.waiting = 0 then now() else turn.waiting_since end
$$;

create function count_job() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        perform add_to_turn(new.organization, (new.status = 'queued')::int, (new.status = 'running')::int,
                            (new.status = 'paused')::int, new.claimed_at);
    elsif old.status in ('queued', 'running', 'paused') then
        perform add_to_turn(old.organization, -(old.status = 'queued')::int, -(old.status = 'running')::int,
                            -(old.status = 'paused')::int, null);
    end if;
    return null;
end $$;
-- Organisations in their order, so that two statements that change jobs of the same ones never wait for each other in
-- a circle.
create function count_changed_jobs() returns trigger language plpgsql as $$
begin
    perform add_to_turn(organization, waiting, running, paused, last_claim) from (
        select organization, sum(sign * (status = 'queued')::int)::bigint as waiting,
               sum(sign * (status = 'running')::int)::bigint as running,
               sum(sign * (status = 'paused')::int)::bigint as paused, max(claimed_at) as last_claim
          from (select 1 as sign, organization, status, claimed_at from after
                union all select -1, organization, status, null from before) job
         group by organization order by organization
    ) changed where waiting <> 0 or running <> 0 or paused <> 0;
    return null;
end $$;
create function forget_turns() returns trigger language plpgsql as $$
begin
    delete from job_turns;
    return null;
end $$;
create trigger jobs_counted after insert or delete on jobs for each row execute function count_job();
create trigger jobs_recounted after update on jobs referencing old table as before new table as after
    for each statement execute function count_changed_jobs();
create trigger jobs_forgotten after truncate on jobs for each statement execute function forget_turns();

-- The organisation with the fewest running jobs goes first, then the one whose last claim is longest ago, then the one
-- that waits longest; of its jobs the oldest. Passed over are only jobs that wait before a further attempt, of which there
-- are few, and, by SKIP LOCKED, jobs that are being cancelled. The settings keep to the indexes whatever the statistics
-- say: they are wrong whenever a queue has just filled.
create function lock_next_job() returns uuid language plpgsql volatile
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
begin
    return (
        select oldest.key from job_turns turn cross join lateral (
            select j.key from jobs j
             where j.organization = turn.organization and j.status = 'queued' and j.run_after <= now()
             order by j.created_at, j.key limit 1 for update skip locked
        ) oldest
         where turn.waiting > 0
         order by turn.running, turn.last_claim nulls first, turn.waiting_since, turn.organization limit 1
    );
end $$;
create or replace function claim_job(p_worker text, p_lease interval) returns setof jobs language plpgsql as $$
declare
    next uuid;
begin
    perform pg_advisory_xact_lock(hashtext('jobs.claim'));
    next := lock_next_job();
    return query
    update jobs j
       set status = 'running', attempt = j.attempt + 1, lease_owner = p_worker, lease_expires_at = now() + p_lease,
           claimed_at = now(), updated_at = now()
     where j.key = next
    returning j.*;
end $$;
