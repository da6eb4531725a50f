-- Collection, judge: notes what the graders said of the answer $3, $4 (prompt, sample) of the job $1 while the attempt
-- $2 holds it: what answer and graders did cost ($5), the verdict ($6) and the score ($7).
with held as materialized (
    select key, failures from jobs where key = $1 and attempt = $2 and status = 'running' for no key update
), calmed as (
    update jobs set failures = 0 from held where jobs.key = held.key and held.failures > 0
)
update teacher_answers set cost = $5, verdict = $6, score = $7
  from held where job = held.key and prompt = $3 and sample = $4
