-- Batch, record: adds the results of lines ($3 their numbers, $4 whether they succeeded, $5 lines of the files, $6 to $8
-- tokens) of the batch $1 while the attempt $2 holds it, and counts those that are new. A line has one result, also if the
-- statement is sent again because nobody knows whether it arrived.
with held as materialized (
    select key from batches
     where key = $1 and attempt = $2 and status in ('in_progress', 'cancelling') for update
), given as materialized (
    select * from unnest($3::int[], $4::bool[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[])
        as given (line, succeeded, content, input_tokens, cached_tokens, output_tokens)
), added as (
    insert into batch_results (batch, line, succeeded, content)
    select held.key, given.line, given.succeeded, given.content from held, given
    on conflict do nothing
    returning line, succeeded
), sums as (
    select count(*) filter (where added.succeeded) as completed, count(*) filter (where not added.succeeded) as failed,
           coalesce(sum(input_tokens), 0) as input_tokens, coalesce(sum(cached_tokens), 0) as cached_tokens,
           coalesce(sum(output_tokens), 0) as output_tokens
      from added join given using (line)
)
update batches b
   set completed = b.completed + sums.completed, failed = b.failed + sums.failed,
       input_tokens = b.input_tokens + sums.input_tokens, cached_tokens = b.cached_tokens + sums.cached_tokens,
       output_tokens = b.output_tokens + sums.output_tokens
  from held, sums where b.key = held.key
returning b.status, b.expires_at <= now() as expired
