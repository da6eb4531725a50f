-- Jobs that collect the answers of a teacher before they train. Such a job is queued and run like any other, but by a
-- collector; once its files are there it is queued again, for a worker.

alter table jobs add column collecting boolean not null default false;     -- true: until its files are there

drop index jobs_waiting;
create index jobs_waiting on jobs (organization, created_at, key) where status = 'queued' and not collecting;
create index jobs_collecting on jobs (created_at, key) where status in ('queued', 'running') and collecting;

-- An answer that was asked for, until it is in the job's files. `cost` is what it may have cost at the most: it is
-- raised before each request, and set to what the request did cost once that is known.
create table teacher_answers (
    job               uuid             not null references jobs on delete cascade,
    prompt            text             not null,                -- digest of the messages
    sample            int              not null,                -- number among the answers to it, from 0
    cost              bigint           not null,                -- in millionths
    answer            text,                                     -- null until it is there
    finish_reason     text,
    prompt_tokens     bigint           not null default 0,
    completion_tokens bigint           not null default 0,
    verdict           text,                                     -- null until it is judged; else 'passed', or a reason
    score             double precision,
    primary key (job, prompt, sample)
);

-- As before, but for workers: those that collect are passed over.
create or replace function lock_next_job() returns uuid language plpgsql volatile
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
begin
    return (
        select oldest.key from job_turns turn cross join lateral (
            select j.key from jobs j
             where j.organization = turn.organization and j.status = 'queued' and not j.collecting
               and j.run_after <= now()
             order by j.created_at, j.key limit 1 for update skip locked
        ) oldest
         where turn.waiting > 0
         order by turn.running, turn.last_claim nulls first, turn.waiting_since, turn.organization limit 1
    );
end $$;

-- As before; a job that collects needs the file of its prompts, too.
create or replace function job_with_file(p_organization text, p_file text) returns text language plpgsql volatile as $$
begin
    return coalesce(
        (select id from jobs
          where organization = p_organization and status in ('queued', 'running', 'paused')
            and p_file in (spec->>'training_file', spec->>'validation_file', spec->'distillation'->'prompts'->>'file')
          order by created_at limit 1),
        (select id from batches
          where organization = p_organization and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
            and input_file = p_file
          order by key limit 1));
end $$;
