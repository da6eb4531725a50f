-- Who needs a file or a model: the id of the oldest unfinished job, null if there is none. In plpgsql and volatile, so that
-- the answer rests on what was committed when it is asked, not when the statement that asks began: a deletion locks the row
-- first and asks then, and a job is added only while it holds its rows.

create function job_with_file(p_organization text, p_file text) returns text language plpgsql volatile as $$
begin
    return (select id from jobs
             where organization = p_organization and status in ('queued', 'running', 'paused')
               and p_file in (spec->>'training_file', spec->>'validation_file')
             order by created_at limit 1);
end $$;
create function job_from_model(p_organization text, p_model text) returns text language plpgsql volatile as $$
begin
    return (select id from jobs
             where organization = p_organization and status in ('queued', 'running', 'paused') and p_model = spec->>'model'
             order by created_at limit 1);
end $$;
