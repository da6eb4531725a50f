-- Batches: files of requests that are answered in the background, and the answers until they become files.

create table batches (
    key                 bigint      generated always as identity primary key,
    id                  text        not null unique,            -- batch_…
    organization        text        not null,
    api_key             text        not null,                   -- who pays; it may end before the batch does
    requests_per_minute bigint      not null,                   -- limits of that key when the batch was created
    tokens_per_minute   bigint      not null,
    endpoint            text        not null,                   -- /v1/chat/completions, …
    input_file          text        not null,                   -- file-…
    metadata            jsonb,
    status              text        not null default 'validating' check (status in (
        'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    model               text,                                   -- of all lines, as they name it; null until they are checked
    errors              jsonb,                                  -- why the input file is no batch
    total               bigint      not null default 0,         -- lines; 0 until they are checked
    completed           bigint      not null default 0,
    failed              bigint      not null default 0,
    input_tokens        bigint      not null default 0,
    cached_tokens       bigint      not null default 0,         -- of the input
    output_tokens       bigint      not null default 0,
    output_file         text,                                   -- file-…
    error_file          text,
    attempt             int         not null default 0,         -- the fence: moves with every claim
    lease_owner         text,
    lease_expires_at    timestamptz,
    created_at          timestamptz not null default now(),
    expires_at          timestamptz not null default now() + interval '24 hours',
    in_progress_at      timestamptz,
    finalizing_at       timestamptz,
    completed_at        timestamptz,
    failed_at           timestamptz,
    expired_at          timestamptz,
    cancelling_at       timestamptz,
    cancelled_at        timestamptz,
    constraint errors_iff_failed check ((errors is not null) = (status = 'failed')),
    constraint no_lease_if_ended check (lease_owner is null or status not in ('failed', 'completed', 'expired', 'cancelled'))
);
create index batches_listed on batches (organization, key);
create index batches_unfinished on batches (organization, key)
 where status in ('validating', 'in_progress', 'finalizing', 'cancelling');

-- Answers of a batch that is not finished: a line of the output or of the error file each.
create table batch_results (
    batch         bigint  not null references batches on delete cascade,
    line          int     not null,                             -- of the input file, from 1
    succeeded     boolean not null,
    content       text    not null,
    primary key (batch, line)
);

-- Who needs a file: the id of the oldest unfinished job or batch, null if there is none.
create or replace function job_with_file(p_organization text, p_file text) returns text language plpgsql volatile as $$
begin
    return coalesce(
        (select id from jobs
          where organization = p_organization and status in ('queued', 'running', 'paused')
            and p_file in (spec->>'training_file', spec->>'validation_file')
          order by created_at limit 1),
        (select id from batches
          where organization = p_organization and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
            and input_file = p_file
          order by key limit 1));
end $$;

-- What of the sums was used by lines of batches, which have a price of their own.
alter table usage_daily
    add column batch_requests          bigint not null default 0,
    add column batch_prompt_tokens     bigint not null default 0,
    add column batch_cached_tokens     bigint not null default 0,
    add column batch_completion_tokens bigint not null default 0;
