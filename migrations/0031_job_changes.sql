-- A change of a job's state is stored as what changed; the API words it for its clients. Events of older versions, and
-- those that the worker words itself, have their text in `message`.

alter table job_events
    alter column message set default '',
    add column change text check (change in (
        'created', 'enqueued',                                  -- a new job; its number in the queue
        'queued', 'running', 'paused', 'failed', 'cancelled',   -- the new status; 'running' again means that it continues
        'cancel_requested', 'pause_requested',                  -- of a running job, whose worker has yet to stop
        'model_created', 'result_file_uploaded', 'succeeded'    -- what success made, and the success itself
    )),
    add column detail text,                                     -- the change's reason, number, model or file
    add constraint text_or_change check (change is null or message = ''),
    add constraint detail_of_change check (detail is null or change is not null);

-- What becomes of a job whose attempt ended without a model. `p_outcome` is 'failed' (not tried again), 'retry' (also:
-- the worker was lost), 'stopped' or 'released'; `p_failures` counts this attempt. A stop that the client asked for
-- wins over trying again.
create function next_status(p_stop text, p_outcome text, p_failures int, p_max_failures int) returns job_status
language sql immutable as $$
    select case when p_stop = 'cancel' then 'cancelled'::job_status
                when p_outcome = 'failed' then 'failed'
                when p_stop = 'pause' then 'paused'
                when p_outcome = 'retry' and p_failures >= p_max_failures then 'failed'
                else 'queued' end
$$;

-- How long a job waits for its next attempt: twice as long after each failure, up to 320 seconds.
create function retry_delay(p_failures int) returns interval
language sql immutable as $$
    select make_interval(secs => 5 * 2 ^ least(p_failures, 6))
$$;
