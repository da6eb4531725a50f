-- Collection, answer: keeps the answer $3, $4 (prompt, sample) of the job $1 while the attempt $2 holds it: what it did
-- cost ($5), its text ($6; null: there will be none), how it ended ($7), tokens ($8, $9), and why it is not kept, if
-- that is clear already ($10). A job that gets further is no sign of one that kills whoever runs it.
with held as materialized (
    select key, failures from jobs where key = $1 and attempt = $2 and status = 'running' for no key update
), calmed as (
    update jobs set failures = 0 from held where jobs.key = held.key and held.failures > 0
)
insert into teacher_answers (job, prompt, sample, cost, answer, finish_reason, prompt_tokens, completion_tokens,
                             verdict)
select key, $3, $4, $5, $6, $7, $8, $9, $10 from held
on conflict (job, prompt, sample) do update set
    cost = excluded.cost, answer = excluded.answer, finish_reason = excluded.finish_reason,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens, verdict = excluded.verdict
