-- Webhooks tell of the ends of batches, of runs of evals, and of responses in the background. Triggers, so that no statement that
-- ends one can forget it.

create function tell_of_ended_batch() returns trigger language plpgsql as $$
begin
    insert into webhook_events (organization, type, subject)
    values (new.organization, 'batch.' || new.status, new.id);
    return null;
end $$;
create trigger batches_told after update on batches for each row
    when (old.status is distinct from new.status and new.status in ('completed', 'failed', 'cancelled', 'expired'))
    execute function tell_of_ended_batch();

create function tell_of_ended_eval_run() returns trigger language plpgsql as $$
begin
    insert into webhook_events (organization, type, subject)
    values (new.organization, 'eval.run.' || case new.status when 'completed' then 'succeeded' else new.status end, new.id);
    return null;
end $$;
create trigger eval_runs_told after update on eval_runs for each row
    when (old.status is distinct from new.status and new.status in ('completed', 'failed', 'canceled'))
    execute function tell_of_ended_eval_run();

create function tell_of_ended_response() returns trigger language plpgsql as $$
begin
    insert into webhook_events (organization, type, subject)
    values (new.organization, 'response.' || new.status, new.id);
    return null;
end $$;
create trigger responses_told after update on responses for each row
    when (new.background and old.status is distinct from new.status
          and new.status in ('completed', 'failed', 'incomplete', 'cancelled'))
    execute function tell_of_ended_response();
