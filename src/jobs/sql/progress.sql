-- Progress: how far the jobs $1 are: the last figures, the first estimate, what a finished one took, and $2 losses from
-- the first to the last. Each is found by a few steps in the index, however many events a job has: the estimate is among
-- the first events, the account among the last.
select job.key, last.step, last.total_steps, last.train_loss, last.elapsed_seconds, last.remaining_seconds,
       estimate.data as estimate, account.data as account, coalesce(line.losses, '{}') as losses
  from jobs as job
  left join lateral (
    select (data->>'step')::bigint as step, (data->>'total_steps')::bigint as total_steps,
           (data->>'train_loss')::double precision as train_loss,
           (data->>'elapsed_seconds')::double precision as elapsed_seconds,
           (data->>'remaining_seconds')::double precision as remaining_seconds
      from job_events where job = job.key and kind = 'metrics' order by seq desc limit 1) as last on true
  left join lateral (
    select data
      from (select seq, data from job_events where job = job.key order by seq limit 100) as first
     where data ? 'estimate' order by seq limit 1) as estimate on true
  left join lateral (
    select data
      from (select seq, data from job_events where job = job.key and job.status = 'succeeded'
             order by seq desc limit 100) as last
     where data ? 'actual' order by seq desc limit 1) as account on true
  left join lateral (
    -- The first step may be long after the first event: other jobs have taken numbers while this one waited.
    select (select seq from job_events where job = job.key and kind = 'metrics' order by seq limit 1) as first,
           (select seq from job_events where job = job.key and kind = 'metrics' order by seq desc limit 1) as last
  ) as bounds on true
  left join lateral (
    select array_agg(loss order by seq) as losses
      from (
        select distinct on (point.seq) point.seq, point.loss
          from generate_series(0, $2 - 1) as place
          cross join lateral (
            select seq, (data->>'train_loss')::double precision as loss
              from job_events
             where job = job.key and kind = 'metrics'
               and seq >= bounds.first + (bounds.last - bounds.first) * place / $2
             order by seq limit 1) as point
         order by point.seq) as points
     where loss is not null) as line on true
 where job.key = any($1)
