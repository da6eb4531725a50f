-- Points: the figures of a job's steps after step $2, in their order, $3 at the most. Where an attempt did steps again,
-- what was told before of these and of later steps is left out.
select seq, attempt, data
  from (
    select seq, attempt, data, (data->>'step')::bigint as step,
           min((data->>'step')::bigint) over (order by seq desc rows between unbounded preceding and 1 preceding)
             as lowest_later_step
      from job_events where job = $1 and kind = 'metrics' and data is not null) as points
 where step > $2 and (lowest_later_step is null or lowest_later_step > step)
 order by seq limit $3
