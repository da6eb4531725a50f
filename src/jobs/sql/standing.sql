-- Standing: the first $1 unfinished jobs of all organisations, those that run first, then in the order of their creation.
select id, organization, status, stop_request, attempt, lease_owner as worker,
       extract(epoch from created_at)::bigint as created_at, extract(epoch from updated_at)::bigint as updated_at
  from jobs where status in ('queued', 'running', 'paused')
 order by status <> 'running', status <> 'queued', jobs.created_at, id limit $1
