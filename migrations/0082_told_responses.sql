-- Tells servers of responses that wait, and of those that have more to read or are gone: the payload is the response's id.

create function notify_response() returns trigger language plpgsql as $$
begin
    perform pg_notify('responses', case when tg_op = 'DELETE' then old.id else new.id end);
    return null;
end $$;

create function notify_response_events() returns trigger language plpgsql as $$
begin
    perform pg_notify('responses', told.response) from (select distinct response from added) told;
    return null;
end $$;

create trigger responses_queued after insert on responses for each row when (new.status = 'queued')
    execute function notify_response();
create trigger responses_changed after update of status on responses for each row
    when (new.background and old.status is distinct from new.status and new.status <> 'in_progress')
    execute function notify_response();
create trigger responses_deleted after delete on responses for each row when (old.streamed)
    execute function notify_response();
create trigger response_events_told after insert on response_events referencing new table as added for each statement
    execute function notify_response_events();
