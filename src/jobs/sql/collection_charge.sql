-- Collection, charge: before a request for the answer $3, $4 of the job $1 (prompt, sample) notes what all its requests
-- may cost, $5, while the attempt $2 holds the job.
with held as materialized (
    select key from jobs where key = $1 and attempt = $2 and status = 'running' for no key update
)
insert into teacher_answers (job, prompt, sample, cost)
select key, $3, $4, $5 from held
on conflict (job, prompt, sample) do update set cost = excluded.cost
