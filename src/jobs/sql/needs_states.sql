-- Needs states: whether the job may go on from a state. Once it may not, it never will.
select exists (
    select from jobs where key = $1 and (status in ('queued', 'running', 'paused') or resumable_until > now())
)
