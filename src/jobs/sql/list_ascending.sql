-- List: a page of an organisation's jobs of one resource, oldest first, that begins after the job $3. $5 is metadata
-- that they have among theirs; $6 is true for jobs without metadata.
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from jobs
 where organization = $1 and api = $2
   and ($5::jsonb is null or spec->'metadata' @> $5)
   and (not $6 or coalesce(spec->'metadata', 'null') in ('null', '{}'))
   and (created_at, id) > (
       select created_at, id from jobs where organization = $1 and api = $2 and id = $3
       union all select '-infinity', '' where $3::text is null)
 order by jobs.created_at, id limit $4
