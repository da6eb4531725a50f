-- Evals that are attached to fine-tune jobs: a row for each such job that has succeeded, until its result is told.

create table job_evals (
    job          uuid        primary key references jobs on delete cascade,
    organization text        not null,
    api_key      text,                                  -- id of the key that the run's requests count for
    run          text,                                  -- evalrun_…, once it was made; its owner may delete it
    expected     text,                                  -- the model that the alias stood for then; null: there was none
    told_at      timestamptz,                           -- its result was written, and the alias moved if it had to be
    created_at   timestamptz not null default now()
);
create index job_evals_open on job_evals (created_at) where told_at is null;

-- A trigger, so that no statement that ends a job can forget it.
create function note_eval_of_job() returns trigger language plpgsql as $$
begin
    insert into job_evals (job, organization, api_key) values (new.key, new.organization, new.api_key);
    return null;
end $$;
create trigger jobs_evaluated after update on jobs for each row
    when (old.status is distinct from new.status and new.status = 'succeeded' and new.spec ? 'eval')
    execute function note_eval_of_job();

-- Who needs a file: the id of the oldest unfinished job, batch or run of an eval, null if there is none. A job that has
-- succeeded needs the items of its eval until their run was made.
create or replace function job_with_file(p_organization text, p_file text) returns text language plpgsql volatile as $$
begin
    return coalesce(
        (select id from jobs
          where organization = p_organization and status in ('queued', 'running', 'paused')
            and p_file in (spec->>'training_file', spec->>'validation_file', spec->'distillation'->'prompts'->>'file',
                           spec#>>'{eval,data_source,source,id}')
          order by created_at limit 1),
        (select id from batches
          where organization = p_organization and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
            and input_file = p_file
          order by key limit 1),
        (select id from eval_runs
          where organization = p_organization and status in ('queued', 'in_progress')
            and data_source#>>'{source,id}' = p_file
          order by created_at limit 1),
        (select j.id from job_evals e join jobs j on j.key = e.job
          where e.organization = p_organization and e.told_at is null and e.run is null
            and j.spec#>>'{eval,data_source,source,id}' = p_file
          limit 1));
end $$;
