-- Succeed: the row, the model, the result files ($7 their ids, $8 names, $9 bytes), the tokens that its key is charged
-- with and its events, or nothing.
with changed as (
    update jobs set
        status = 'succeeded', lease_owner = null, lease_expires_at = null, stop_request = null,
        fine_tuned_model = $3, trained_tokens = $6, result_files = result_files || $7::text[],
        finished_at = now(), updated_at = now()
     where key = $1 and attempt = $2 and status = 'running'
    returning *
), published as (
    insert into fine_tuned_models (organization, name, base, adapter, job)
    select organization, $3, $4, $5, id from changed
), let_go as (
    delete from adapter_holds using changed where job = changed.key
), filed as (
    insert into files (id, organization, filename, purpose, bytes)
    select file, organization, name, 'fine-tune-results', size
      from changed, unnest($7::text[], $8::text[], $9::bigint[]) as results (file, name, size)
), charged as (
    insert into usage_daily as used (organization, day, key, model, base, trained_tokens)
    select organization, (now() at time zone 'utc')::date, coalesce(api_key, ''),
           coalesce(spec->>'alias', spec->>'model'), $4, $6
      from changed
    on conflict (organization, day, key, model, base)
    do update set trained_tokens = used.trained_tokens + excluded.trained_tokens
), said as (
    insert into job_events (job, attempt, change, detail)
    select key, attempt, change, detail from changed, lateral (
        select 0 as position, 'model_created' as change, fine_tuned_model as detail
        union all
        select position, 'result_file_uploaded', file
          from unnest(result_files) with ordinality as files (file, position) where api = 'fine_tunes'
        union all
        select cardinality(result_files) + 1, 'succeeded', null
    ) told order by position
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
