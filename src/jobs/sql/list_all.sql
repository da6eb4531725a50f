-- List all: a page of an organisation's jobs of both resources, newest first, that begins after the job $2. Each resource
-- is read in the order of its index.
with cursor as materialized (
    select created_at, id from jobs where organization = $1 and id = $2
    union all select 'infinity', '' where $2::text is null
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from (
    (select * from jobs where organization = $1 and api = 'fine_tunes'
        and (created_at, id) < (select created_at, id from cursor)
      order by created_at desc, id desc limit $3)
    union all
    (select * from jobs where organization = $1 and api = 'fine_tuning_jobs'
        and (created_at, id) < (select created_at, id from cursor)
      order by created_at desc, id desc limit $3)
  ) as jobs
 order by jobs.created_at desc, id desc limit $3
