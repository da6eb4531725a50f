-- Tells servers of work in the background that waits: the payload says which. A notification is only a hint: whoever
-- hears it looks at the rows.

create function notify_work() returns trigger language plpgsql as $$
begin
    perform pg_notify('work', tg_argv[0]);
    return null;
end $$;

-- Made, or given back by a server that stops.
create trigger eval_runs_queued after insert on eval_runs for each row when (new.status = 'queued')
    execute function notify_work('eval_runs');
create trigger eval_runs_given_back after update of leased_until on eval_runs for each row
    when (old.leased_until is not null and new.leased_until is null and new.status in ('queued', 'in_progress'))
    execute function notify_work('eval_runs');

-- An eval at the end of a job goes on when the job has succeeded, and when its run has ended or is gone.
create trigger job_evals_waiting after insert on job_evals for each row execute function notify_work('job_evals');
create trigger eval_runs_ended after update of status on eval_runs for each row
    when (old.status is distinct from new.status and new.status in ('completed', 'failed', 'canceled'))
    execute function notify_work('job_evals');
create trigger eval_runs_deleted after delete on eval_runs for each row execute function notify_work('job_evals');

create trigger jobs_to_collect after insert on jobs for each row when (new.collecting and new.status = 'queued')
    execute function notify_work('collections');
create trigger jobs_to_collect_again after update of status on jobs for each row
    when (new.collecting and new.status = 'queued' and old.status is distinct from new.status)
    execute function notify_work('collections');
